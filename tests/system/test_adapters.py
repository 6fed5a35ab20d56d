"""A run with an adapter: started from an import, killed, resumed elsewhere, evaluated, and handed to peft."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from bigtrain.checkpoint import Checkpoint, tensor_digests
from tests.refusals import assert_refused
from tests.system.run_sandbox import RunSandbox, as_json, curve, kill_ranks

ADAPTER = {"method": "dora", "r": 4, "lora_alpha": 16.0, "target_modules": ["*_proj"], "lora_dropout": 0.1}


@pytest.fixture(scope="module")
def base(undisturbed, tmp_path_factory) -> Path:
    """What a run has made, imported."""
    directory = tmp_path_factory.mktemp("base")
    for command in (("export", undisturbed.run, directory / "hf"), ("import", directory / "hf", directory / "weights")):
        result = undisturbed.bigtrain(*command, "--no-check")
        assert result.returncode == 0, result.stderr
    return directory


def on_base(built: RunSandbox, base: Path, directory: Path) -> RunSandbox:
    """A run of 12 steps with an adapter."""
    settings = yaml.safe_load(built.config.read_text())
    settings["run_dir"] = str(directory / "run")
    settings["model"] = yaml.safe_load((base / "weights/model.yaml").read_text())["model"]
    settings["model"]["init_from"] = str(base / "weights")
    settings["adapter"] = ADAPTER
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    return RunSandbox(directory, config)


@pytest.fixture(scope="module")
def whole(built, base, tmp_path_factory) -> RunSandbox:
    """A run with an adapter from the first step to the last."""
    run = on_base(built, base, tmp_path_factory.mktemp("whole"))
    status, output = run.train(2)
    assert status == 0, output
    return run


@pytest.fixture
def adapter_run(built, base, tmp_path) -> RunSandbox:
    return on_base(built, base, tmp_path)


def weights_of_run(run: RunSandbox, step: int = 12) -> dict:
    checkpoint = Checkpoint.at(run.run / f"checkpoints/step-{step:08d}")
    return {name: digest for (name, kind), digest in tensor_digests(checkpoint).items() if kind == "master"}


@pytest.mark.slow
def test_a_checkpoint_holds_only_what_learns_and_names_the_base(whole, base):
    parts = {name.rpartition(".")[2] for name in weights_of_run(whole)}
    assert parts == {"lora_A", "lora_B", "lora_magnitude_vector"}
    manifest = json.loads((whole.run / "checkpoints/step-00000012/manifest.json").read_text())
    assert manifest["state"]["base"] == json.loads((base / "weights/manifest.json").read_text())["tensors"]
    files = (whole.run / "checkpoints/step-00000012").glob("*.safetensors")
    assert sum(file.stat().st_size for file in files) < (base / "weights/model.safetensors").stat().st_size


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(whole, adapter_run):
    training = adapter_run.start_forked(2)
    adapter_run.wait_for_step(6)
    kill_ranks(training)
    status, output = adapter_run.train(2)
    assert status == 0, output
    assert curve(adapter_run.metrics()) == curve(whole.metrics())
    assert weights_of_run(adapter_run) == weights_of_run(whole)


@pytest.mark.slow
def test_an_adapter_resumes_at_another_stage_and_world_size(whole, adapter_run):
    """The run resumes on one rank at ZeRO stage 3, and its curve stays near that of two ranks at stage 2."""
    status, output = adapter_run.train(2, "train.stop_after=4")
    assert status == 75, output
    before = weights_of_run(adapter_run, 4)
    status, output = adapter_run.train(1, "engine.zero_stage=3")
    assert status == 0, output
    assert weights_of_run(adapter_run, 4) == before
    ours, theirs = ([m["loss"] for m in run.metrics()] for run in (adapter_run, whole))
    assert ours == pytest.approx(theirs, abs=5e-3)


@pytest.mark.slow
def test_eval_generate_and_exports_see_the_adapter(whole, tmp_path, require):
    """Evaluated after the run as in it, and peft and transformers compute what it computes."""
    require("transformers")
    require("peft")
    last = [event for event in whole.events() if event["event"] == "evaluate"][-1]
    found = as_json(whole.bigtrain("eval", whole.run, "--json"))
    ours = {source["source"]: source["loss"] for source in found["validation"]}
    theirs = {source["source"]: source["loss"] for source in last["validation"]}
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert whole.bigtrain("generate", whole.run, "import", "--max-new-tokens", "4").returncode == 0
    adapter = as_json(whole.bigtrain("export", whole.run, tmp_path / "adapter", "--to", "peft", "--json"))
    assert adapter["method"] == "dora" and adapter["modules"] == 14
    assert 0 <= adapter["largest_logit_difference"] < 1e-3
    merged = as_json(whole.bigtrain("export", whole.run, tmp_path / "merged", "--merge", "--json"))
    assert 0 <= merged["largest_logit_difference"] < 1e-3
    assert_refused(whole.bigtrain("export", whole.run, tmp_path / "plain"), "has trained an adapter", fix="--merge")
    assert not (tmp_path / "plain").exists()


@pytest.mark.slow
def test_merged_and_unmerged_models_have_equal_logits(whole, base, tmp_path, require):
    """peft merges the exported adapter into what `--merge` writes, and the logits are those of the two apart."""
    require("peft")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for arguments in ((tmp_path / "adapter", "--to", "peft"), (tmp_path / "merged", "--merge")):
        result = whole.bigtrain("export", whole.run, *arguments, "--no-check")
        assert result.returncode == 0, result.stderr
    ids = torch.arange(4, 60)[None]
    theirs = AutoModelForCausalLM.from_pretrained(base / "hf", dtype=torch.float32)
    with torch.no_grad():
        alone = theirs(ids).logits
        beside = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(ids).logits
    assert (beside - alone).abs().max() > 0.05  # it has learned something
    # Merged weights are rounded to bfloat16.
    torch.testing.assert_close(merged, beside, rtol=0, atol=0.01 * beside.abs().max().item())


@pytest.mark.slow
def test_another_base_is_refused_before_the_first_step(adapter_run, base, tmp_path):
    """One whose weights differ, for training that goes on and for all that opens the checkpoint."""
    status, output = adapter_run.train(1, "train.stop_after=2")
    assert status == 75, output
    other = tmp_path / "other"
    shutil.copytree(base / "hf", other / "hf")
    weights = load_file(other / "hf/model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, other / "hf/model.safetensors", metadata={"format": "pt"})
    result = adapter_run.bigtrain("import", other / "hf", other / "weights", "--no-check")
    assert result.returncode == 0, result.stderr
    elsewhere = f"model.init_from={other / 'weights'}"
    refused = adapter_run.bigtrain("train", adapter_run.config, elsewhere)
    assert_refused(refused, "is not the base", found="another norm.weight", fix="model.init_from")
    config = yaml.safe_load((adapter_run.run / "config.yaml").read_text())
    config["model"]["init_from"] = str(other / "weights")
    (adapter_run.run / "config.yaml").write_text(yaml.safe_dump(config))
    assert_refused(adapter_run.bigtrain("eval", adapter_run.run), "is not the base", fix="model.init_from")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter.target_modules=['*.nothing']"], "matches nothing in this model"),
        (["adapter.modules_to_save=[lm_haed]"], "matches nothing in this model"),
        (["adapter.modules_to_save=['layers.1.*']"], "holds a layer that has an adapter, too"),
        (["adapter.r=65"], "larger than a side of the matrix"),
        (["adapter.bottleneck_size=8"], "is for method bottleneck"),
        (["model.init_from=null"], "adapts a model that is there"),
        (["engine.tensor_parallel_size=2"], "works with engine.tensor_parallel_size 1"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused_in_one_message(adapter_run, overrides, message):
    assert_refused(adapter_run.bigtrain("train", adapter_run.config, *overrides), message)
    assert not (adapter_run.run / "config.yaml").exists()


def test_there_is_no_peft_or_merge_without_an_adapter(undisturbed, tmp_path):
    for arguments, message in ((("--to", "peft"), "has no adapter"), (("--merge",), "nothing to merge")):
        assert_refused(undisturbed.bigtrain("export", undisturbed.run, tmp_path / "out", *arguments), message)

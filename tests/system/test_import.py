"""A run that starts from imported weights starts where `transformers` stands."""

from itertools import pairwise

import pytest
import torch
import yaml

from bigtrain.base.errors import BigtrainError
from bigtrain.checkpoint import load_weights, newest_verified
from bigtrain.config import load_settings
from bigtrain.data.run_data import RunData
from bigtrain.rundir import RunDirectory
from bigtrain.trained import starting_weights
from tests.matrix import thinned
from tests.system.run_sandbox import RunSandbox, as_json


@pytest.fixture(scope="module")
def imported(undisturbed, tmp_path_factory, require) -> RunSandbox:
    """What a run has made, handed to Hugging Face and taken back."""
    require("transformers")
    directory = tmp_path_factory.mktemp("imported")
    result = undisturbed.bigtrain("export", undisturbed.run, directory / "hf", "--no-check")
    assert result.returncode == 0, result.stderr
    result = as_json(undisturbed.bigtrain("import", directory / "hf", directory / "weights", "--json"))
    assert 0 <= result["largest_logit_difference"] < 1e-3
    assert result["data.tokenizer.end_of_text"] == "<|endoftext|>"
    settings = yaml.safe_load(undisturbed.config.read_text())
    settings["run_dir"] = str(directory / "run")
    settings["model"] = yaml.safe_load((directory / "weights/model.yaml").read_text())["model"]
    settings["model"]["init_from"] = str(directory / "weights")
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    return RunSandbox(directory, config)


@pytest.mark.slow
@pytest.mark.parametrize("stage", thinned([1, 3], keep=[3]))
def test_the_first_loss_is_that_of_transformers(imported, stage):
    """The first loss is the one that transformers computes on the same batch."""
    run = imported.directory / f"stage{stage}"
    overrides = [f"run_dir={run}", "engine.precision=fp32", f"engine.zero_stage={stage}", "train.stop_after=1"]
    status, output = imported.train(2, *overrides)
    assert status == 75, output
    (first, *_) = imported.metrics(run)
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(loss_of_transformers(imported), rel=2e-5)


@torch.no_grad()
def loss_of_transformers(imported: RunSandbox) -> float:
    """The token mean over the first global batch, a document at a time."""
    from transformers import AutoModelForCausalLM

    settings = load_settings(imported.config)
    data = RunData.open(settings)
    model = AutoModelForCausalLM.from_pretrained(imported.directory / "hf", dtype=torch.float32)
    total, tokens = 0.0, 0
    with data.loader(settings.train.micro_batch_size, 0, rank=0, world_size=1) as loader:
        for batch in next(loader).micro_batches:
            batch = batch.to("cpu")
            ids, labels = batch.input_ids.flatten(), batch.labels.flatten()
            bounds = batch.cu_seqlens.tolist()
            for start, end in pairwise(bounds):
                logits = model(ids[None, start:end]).logits[0]
                total += torch.nn.functional.cross_entropy(logits, labels[start:end], reduction="sum").item()
            tokens += batch.label_tokens
    return total / tokens


@pytest.mark.slow
@pytest.mark.parametrize("stage", thinned([1, 3], keep=[3]))
def test_a_run_starts_from_the_master_weights_of_another_run(undisturbed, tmp_path, stage):
    """Bit for bit, in float32, and with other dropout; the log names the step."""
    overrides = [
        f"run_dir={tmp_path / 'run'}", f"model.init_from={undisturbed.run}", "model.hidden_dropout=0.1",
        f"engine.zero_stage={stage}", "engine.precision=fp32", "optimizer.learning_rate=1e-30", "train.stop_after=1",
    ]  # fmt: skip
    status, output = undisturbed.train(2, *overrides)
    assert status == 75, output
    assert f"starts from the weights of step 12 of {undisturbed.run}" in output
    theirs, ours = (
        load_weights(newest_verified(RunDirectory(run).tiers()).newest) for run in (undisturbed.run, tmp_path / "run")
    )
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


class OnlyRank:
    data_rank, data_size = 0, 1


def test_a_section_model_or_a_tokenizer_of_another_model_is_refused(imported, tmp_path):
    with pytest.raises(BigtrainError, match="the section model is not that of"):
        starting_weights(load_settings(imported.config, ["model.num_attention_heads=8"]))
    with pytest.raises(BigtrainError, match="no tokenizer can be read"):
        starting_weights(load_settings(imported.config, [f"data.dir={tmp_path}"]))
    with pytest.raises(BigtrainError, match="was not written by `bigtrain import`"):
        starting_weights(load_settings(imported.config, [f"model.init_from={tmp_path}"]))

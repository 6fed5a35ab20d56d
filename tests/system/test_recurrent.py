"""Recurrent models from the command line: nothing above the model assumes attention."""

from __future__ import annotations

import copy
import json

import pytest
import yaml

from tests.matrix import thinned
from tests.refusals import assert_refused
from tests.system.run_sandbox import STATUS_STOPPED, RunSandbox, as_json, curve, kill_ranks, small_settings

SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 1024, "max_position_embeddings": 64}
SENTINELS = [f"<extra_id_{number}>" for number in range(20)]
MODELS = {
    "lstm": {"model": {**SHAPE, "family": "lstm", "tie_word_embeddings": True}},
    "gru": {"model": {**SHAPE, "family": "gru"}},
    "char_lstm": {"model": {**SHAPE, "family": "char_lstm", "character_filters": [16, 16, 32]}},
    "bahdanau": {"model": {**SHAPE, "family": "bahdanau"}, "objective": {"name": "span_corruption"}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RunSandbox:
    """Data whose tokenizer has sentinels."""
    directory = tmp_path_factory.mktemp("recurrent")
    settings = small_settings(directory)
    settings["data"]["tokenizer"]["additional_special_tokens"] = ["<pad>", *SENTINELS]
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    sandbox = RunSandbox(directory, config)
    done = sandbox.bigtrain("data", "build", config)
    assert done.returncode == 0, done.stderr
    return sandbox


def run_of(data: RunSandbox, directory, model: str | None, name: str, **engine: object) -> RunSandbox:
    settings = yaml.safe_load(data.config.read_text()) | copy.deepcopy(MODELS[model] if model else {})
    settings["run_dir"] = str(directory / name / "run")
    settings["engine"] |= engine
    (directory / name).mkdir()
    config = directory / name / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    return RunSandbox(directory / name, config)


@pytest.mark.slow
@pytest.mark.parametrize("model", thinned(MODELS, keep=["char_lstm"]))
def test_a_recurrent_run_keeps_the_promises_of_a_run(data, tmp_path, model):
    """It is the same after a kill, has the same losses at other world sizes and stages, and is evaluated as trained."""
    whole = run_of(data, tmp_path, model, "whole")
    status, output = whole.train(2)
    assert status == 0, output
    steps = curve(whole.metrics())

    killed = run_of(data, tmp_path, model, "killed")
    training = killed.start_forked(2)
    killed.wait_for_step(6)
    kill_ranks(training)
    status, output = killed.train(2)
    assert status == 0, output
    assert {step[0]: step for step in curve(killed.metrics())} == {step[0]: step for step in steps}

    losses = []
    for world, stage, recompute in ((1, 0, "none"), (4, 3, "full")):
        other = run_of(
            data, tmp_path, model, f"at-{world}", zero_stage=stage, precision="fp32", activation_checkpointing=recompute
        )
        status, output = other.train(world, f"train.micro_batch_size={2 if world == 4 else 4}", "train.stop_after=4")
        assert status == STATUS_STOPPED, output
        losses.append([record["loss"] for record in other.metrics()])
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)

    recorded = [e for e in whole.events() if e["event"] == "evaluate" and e["step"] == 12][-1]["validation"]
    for theirs, ours in zip(recorded, as_json(whole.bigtrain("eval", whole.run, "--json"))["validation"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
    generated = whole.bigtrain("generate", whole.run, "import ", "--max-new-tokens", "5", "--json")
    if model == "bahdanau":
        assert_refused(generated, "encoder-decoder continues no text")
    else:
        assert len(json.loads(generated.stdout)["texts"][0]["tokens"]) > 0
    assert_refused(whole.bigtrain("export", whole.run, tmp_path / "hf", "--to", "hf"), f"no class for family {model}")
    assert_refused(whole.bigtrain("export", whole.run, tmp_path / "gguf", "--to", "gguf"), "not exported to GGUF")


@pytest.mark.slow
def test_a_run_of_another_architecture_is_a_baseline(data, tmp_path):
    """Its perplexity stands beside the run's, on the same labels; another tokenizer or objective is refused."""
    decoder, lstm = run_of(data, tmp_path, None, "decoder"), run_of(data, tmp_path, "lstm", "lstm")
    for run in (decoder, lstm):
        status, output = run.train(1, "train.steps=6")
        assert status == 0, output
    arguments = ("eval", decoder.run, "--baseline-run", lstm.run)
    beside = as_json(decoder.bigtrain(*arguments, "--json"))["validation"]
    alone = as_json(lstm.bigtrain("eval", lstm.run, "--json"))["validation"]
    for row, own in zip(beside, alone, strict=True):
        assert row["run perplexities"] == {str(lstm.run): pytest.approx(own["perplexity"])}
    assert str(lstm.run) in decoder.bigtrain("report", decoder.run).stdout
    assert "perplexity of" in decoder.bigtrain(*arguments).stdout

    spans = run_of(data, tmp_path, "bahdanau", "spans")
    assert spans.train(1, "train.steps=6")[0] == 0
    assert_refused(
        decoder.bigtrain("eval", decoder.run, "--baseline-run", spans.run),
        "another objective",
        found="span_corruption",
        wanted="causal",
    )


def test_what_needs_attention_is_one_message_before_the_first_step(data, tmp_path):
    lstm = run_of(data, tmp_path, "lstm", "lstm")
    for override, words in (
        ("engine.tensor_parallel_size=2", ["model.architecture recurrent", "tensor_parallel_size 1"]),
        ("engine.sequence_parallel_size=2", ["model.architecture recurrent", "sequence_parallel_size 1"]),
        ("engine.attn_implementation=sdpa", ["engine.attn_implementation auto, found sdpa"]),
        ("model.num_attention_heads=4", ["num_attention_heads 4 is for blocks with attention"]),
        ("objective.name=masked", ["objective.name masked needs model.architecture encoder"]),
    ):
        assert_refused(lstm.bigtrain("train", lstm.config, override), *words)
    assert not lstm.run.exists()

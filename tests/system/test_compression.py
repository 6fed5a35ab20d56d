"""A run that trains with pruned and rounded weights: killed, resumed, evaluated, and compressed as it trained."""

from __future__ import annotations

import pytest

from tests.refusals import assert_refused
from tests.system.run_sandbox import RunSandbox, as_json, curve, kill_ranks

COMPRESSED = (
    "compression.sparsity=0.5", "compression.pruning_start=2", "compression.pruning_end=10",
    "compression.weights=int8", "engine.precision=fp32",
)  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit_and_is_what_it_trained(sandbox: RunSandbox, tmp_path) -> None:
    """The same curve after a kill; `eval` finds the loss of the last evaluation, of the run and of its integers."""
    whole = f"run_dir={tmp_path / 'whole'}"
    status, output = sandbox.train(2, *COMPRESSED, whole)
    assert status == 0, output
    training = sandbox.start_forked(2, *COMPRESSED)
    sandbox.wait_for_step(6)
    kill_ranks(training)
    status, output = sandbox.train(2, *COMPRESSED)
    assert status == 0, output
    assert curve(sandbox.metrics()) == curve(sandbox.metrics(tmp_path / "whole"))

    (*_, last) = (event for event in sandbox.events() if event["event"] == "evaluate")
    losses = [source["loss"] for source in last["validation"]]
    found = as_json(sandbox.bigtrain("eval", sandbox.run, "--json"))
    assert [source["loss"] for source in found["validation"]] == pytest.approx(losses, abs=1e-5)
    out = tmp_path / "out"
    integers = ("--quantise", "int8", "--rounding", "nearest")
    made = as_json(sandbox.bigtrain("compress", sandbox.run, out, *integers, "--json"))
    assert made["sparsity"] >= 0.5 and made["bytes"] < made["bytes_before"]
    found = as_json(sandbox.bigtrain("eval", out, "--json"))
    assert [source["loss"] for source in found["validation"]] == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.compile=true"], "engine.compile"),
        (["engine.float8=true"], "engine.float8"),
        (["engine.tensor_parallel_size=2", "engine.zero_stage=1"], "tensor_parallel_size"),
        (["compression.pruning_end=13"], "pruning_end"),
    ],
)
def test_what_does_not_go_with_compression_is_refused(sandbox: RunSandbox, overrides: list[str], message: str) -> None:
    result = sandbox.bigtrain("train", sandbox.config, *COMPRESSED, *overrides)
    assert_refused(result, message)

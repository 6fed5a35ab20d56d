"""What the planner says of a run's memory is what the run has, kind by kind."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from bigtrain.config import load_settings
from bigtrain.estimate import forecast_memory, layout_of, workload_of
from tests import forkserver
from tests.matrix import thinned
from tests.system.run_sandbox import RunSandbox

KINDS = {
    "weights": "weights",
    "master weights": "master_weights",
    "optimizer moments": "moments",
    "gradients": "gradients",
    "activations kept": "activations_kept",
    "logits and loss": "logits_and_loss",
}
"""The names that `bigtrain profile` has for what `bigtrain plan` forecasts."""
NEARLY = 0.05


class Case(NamedTuple):
    stage: int
    ranks: int
    recomputation: str
    precision: str


def cases() -> list[Case]:
    """DeepSpeed gathers gradients in float32 from stage 1 on, so stage 0 is for float32 alone."""
    return [
        Case(stage, ranks, recomputation, precision)
        for stage in (0, 1, 2, 3)
        for ranks in (1, 2, 4)
        for recomputation in ("none", "selective", "full", "offloaded")
        for precision in (("fp32",) if stage == 0 else ("bf16", "fp32"))
    ]


QUICK = Case(3, 2, "selective", "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("case", thinned(cases(), keep=[QUICK]), ids=lambda case: "-".join(map(str, case)))
def test_the_memory_of_a_run_is_what_was_forecast(case: Case, sandbox: RunSandbox) -> None:
    """Weights, gradients, master weights and moments on each rank, what waits for the backward pass, and what the loss
    needs: each within 5% of what a profile measures."""
    overrides = [
        f"engine.zero_stage={case.stage}",
        f"engine.activation_checkpointing={case.recomputation}",
        f"engine.precision={case.precision}",
    ]
    command = ("-m", "bigtrain", "profile", sandbox.config, "--steps", "1", "--warmup", "1", *overrides)
    done = forkserver.torchrun(case.ranks, *command, cwd=sandbox.directory)
    assert done.returncode == 0, done.stdout
    found = json.loads((sandbox.run.with_name("run-profile") / "profile.json").read_text())
    measured = found["memory"] | found["forward"]
    # On a CPU the host's memory is the device's: what is offloaded is where it would be with `full`.
    settings = load_settings(sandbox.config, [each.replace("offloaded", "full") for each in overrides])
    forecast = forecast_memory(workload_of(settings, "cpu"), layout_of(settings, case.ranks)).kinds
    assert {kind: measured[kind] for kind in KINDS} == pytest.approx(
        {kind: forecast[name] for kind, name in KINDS.items()}, rel=NEARLY
    )

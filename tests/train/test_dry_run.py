"""The dry run before step 1: no run is another for it; and what does not fit into memory, said so that one can act."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from tests.matrix import one_of_each, selected, thinned
from tests.train.parity import Case, launch

STEPS = 3
# Beside these, every resume of test_reshard.py has a dry run, in all the ways that state can be cut.
CASES = [
    Case(0, 2, accumulation=4),
    *(Case(stage, 2, accumulation=4, precision="bf16") for stage in (1, 2, 3)),
    Case(2, 2, precision="fp16", tied=True),
    Case(2, 2, precision="bf16", family="mixtral"),
]
QUICK = one_of_each(CASES, asdict)


@pytest.fixture(scope="module")
def curves(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    chosen = selected(request, "case")
    jobs = [{"do": do, "case": asdict(case), "steps": STEPS} for case in chosen for do in ("undisturbed", "rehearsed")]
    results = launch(jobs, 2, tmp_path_factory.mktemp("rehearsed"))
    return {case.name: results[2 * i : 2 * i + 2] for i, case in enumerate(chosen)}


@pytest.mark.slow
@pytest.mark.parametrize("case", thinned(CASES, QUICK), ids=lambda case: case.name)
def test_a_dry_run_leaves_no_trace(curves: dict[str, Any], case: Case) -> None:
    undisturbed, rehearsed = curves[case.name]
    assert rehearsed["state_before"] == rehearsed["state_after"]
    assert rehearsed["counted"] == undisturbed["counted"]
    assert all(bool(losses) == (case.family == "mixtral") for losses in rehearsed["counted"])
    assert rehearsed["losses"] == undisturbed["losses"] and rehearsed["norms"] == undisturbed["norms"]


@pytest.mark.slow
@pytest.mark.parametrize("case", thinned(CASES, QUICK), ids=lambda case: case.name)
def test_the_memory_of_weights_gradients_and_moments_is_known(curves: dict[str, Any], case: Case) -> None:
    held, parameters = curves[case.name][1]["held"], curves[case.name][1]["parameters"]
    share = 1 if case.stage == 0 else 2
    padding = 0.1 * parameters  # to equal parts
    width = 4 if case.precision == "fp32" else 2
    # This model is so small that stage 3 leaves it whole on every rank, beside the part that the rank owns.
    of_weights = width * parameters * (1.5 if case.stage == 3 else 1)
    assert held["weights"] == pytest.approx(of_weights, abs=padding)
    assert held["master weights"] == pytest.approx(0 if case.stage == 0 else 4 * parameters / share, abs=padding)
    assert held["optimizer moments"] == pytest.approx(8 * parameters / share, abs=2 * padding)
    # A whole one until the step reduces it, at stage 1; else this rank's part, or in one piece before it is cut.
    assert 4 * parameters / (1 if case.stage < 2 else share) - padding <= held["gradients"] <= 8 * parameters

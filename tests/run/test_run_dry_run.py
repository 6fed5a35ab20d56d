"""The dry run before step 1: no run is another for it; and what does not fit into memory, said so that one can act."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from parity import Case, launch

STEPS = 3
CASES = [
    Case(0, 2, accumulation=4),
    *(Case(stage, 2, accumulation=4, precision="bf16", recompute="selective") for stage in (1, 2, 3)),
    *(Case(stage, 2, precision="fp16", tied=True) for stage in (1, 2, 3)),
    Case(2, 2, accumulation=4, offload="cpu"),
    Case(1, 2, tensor=2, precision="bf16"),
]


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    jobs = [{"do": do, "case": asdict(case), "steps": STEPS} for case in CASES for do in ("undisturbed", "rehearsed")]
    results = launch(jobs, 2, tmp_path_factory.mktemp("rehearsed"))
    return {case.name: results[2 * i : 2 * i + 2] for i, case in enumerate(CASES)}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_dry_run_leaves_no_trace(curves: dict[str, Any], case: Case) -> None:
    undisturbed, rehearsed = curves[case.name]
    assert rehearsed["state_before"] == rehearsed["state_after"]
    assert rehearsed["losses"] == undisturbed["losses"] and rehearsed["norms"] == undisturbed["norms"]

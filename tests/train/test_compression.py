"""Training with pruned and rounded weights is that of a plain loop at every stage, and resumes bit for bit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.matrix import one_of_each, selected, thinned
from tests.train.parity import Case, launch, plain_loop

STEPS = 4


def cases() -> list[Case]:
    """Each stage, with other families and ways of recomputing."""
    return [
        Case(0, 2, 1, 0.3, compressed=True),
        Case(1, 2, 4, 0.3, compressed=True, tied=True, recompute="selective", family="bert"),
        Case(2, 2, 1, 0.3, compressed=True, recompute="full"),
        Case(3, 2, 4, 0.3, compressed=True, recompute="full"),
        Case(3, 4, 1, 0.3, compressed=True, sequence=2),
        Case(1, 2, 1, 0.3, compressed=True, tied=True, family="t5"),
        Case(1, 2, 1, 0.3, compressed=True, precision="bf16"),
    ]


def state_cases() -> list[Case]:
    """Ways in which state can be cut."""
    return [
        Case(0, 2, compressed=True),
        Case(2, 2, compressed=True, precision="bf16"),
        Case(3, 2, compressed=True),
    ]


QUICK = one_of_each(cases(), asdict)


def run(do: str, root: Path, cases: list[Case], arguments: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for world in sorted({case.world for case in cases}):
        chosen = [case for case in cases if case.world == world]
        directory = root / f"{do}-{world}"
        directory.mkdir()
        jobs = [{"do": do, "case": asdict(case), **arguments(case)} for case in chosen]
        found |= zip((case.name for case in chosen), launch(jobs, world, directory), strict=True)
    return found


@pytest.fixture(scope="module")
def curves(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("curve", tmp_path_factory.mktemp("curves"), selected(request, "case"), lambda case: {})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", thinned(cases(), QUICK), ids=lambda case: case.name)
def test_sixteen_steps_equal_a_plain_loop(curves: dict[str, Any], case: Case) -> None:
    """As near as a mask lets it be: where two weights are nearly alike, rounding decides which one goes."""
    ours, plain = curves[case.name], plain_loop(case)
    loss, norm = {"fp32": (2e-3, 2e-2), "bf16": (3e-2, 0.2)}[case.precision]
    assert ours["losses"] == pytest.approx(plain["losses"], abs=loss)
    assert ours["norms"] == pytest.approx(plain["norms"], rel=norm)
    free = plain_loop(Case(**{**asdict(case), "compressed": False}))
    near, apart = (
        max(abs(a - b) for a, b in zip(plain["losses"], others["losses"], strict=True)) for others in (ours, free)
    )
    assert case.precision != "fp32" or apart > 3 * near, (near, apart)  # compression does change the training


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_resume_repeats_the_curve_bit_for_bit(tmp_path: Path) -> None:
    """In the middle of the schedule of pruning, in new processes, from weights and step alone."""
    states = state_cases()
    to = lambda case: {"to": str(tmp_path / case.name), "steps": STEPS}  # noqa: E731
    first = run("train_and_save", tmp_path, states, to)
    at = lambda case: {"at": str(tmp_path / case.name), "steps": STEPS}  # noqa: E731
    assert run("resume", tmp_path, states, at) == first

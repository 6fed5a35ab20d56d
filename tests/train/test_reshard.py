"""Training state survives every change of how it is cut: stage, world size, shared matrices, shared sequences, offload.

Bit for bit, through new processes and files, from each way into each other.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bigtrain.checkpoint import Checkpoint, tensor_digests
from tests.matrix import one_of_each, selected, thinned
from tests.train.parity import Case, launch, state_cases

STEPS = 4
QUICK = one_of_each(state_cases(), asdict)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reshard")


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest) -> list[Case]:
    """The shapes of this session: each is loaded from each."""
    return selected(request, "case")


@pytest.fixture(scope="module")
def first(root: Path, cases: list[Case]) -> dict[str, Any]:
    """The second half of each curve, undisturbed; half-way every case has saved."""
    return run("train_and_save", root, cases, lambda case: {"to": str(saved(root, case))})


@pytest.fixture(scope="module")
def resumed(root: Path, cases: list[Case], first: dict[str, Any]) -> dict[str, Any]:
    """The second half again, in new processes."""
    return run("resume", root, cases, lambda case: {"at": str(saved(root, case))})


@pytest.fixture(scope="module")
def resaved(root: Path, cases: list[Case], first: dict[str, Any]) -> Path:
    """What each case has loaded from each, saved again."""
    run(
        "resave",
        root,
        cases,
        lambda case: {
            "at": [str(saved(root, source)) for source in cases],
            "to": [str(saved(root / "again" / case.name, source)) for source in cases],
        },
    )
    return root / "again"


def run(do: str, root: Path, cases: list[Case], arguments: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for world in sorted({case.world for case in cases}):
        chosen = [case for case in cases if case.world == world]
        jobs = [{"do": do, "case": asdict(case), "steps": STEPS, **arguments(case)} for case in chosen]
        directory = root / f"{do}-{world}"
        directory.mkdir()
        found |= zip((case.name for case in chosen), launch(jobs, world, directory), strict=True)
    return found


def saved(root: Path, case: Case) -> Path:
    return root / case.name


def digests(run: Path) -> dict[Any, str]:
    return dict(tensor_digests(Checkpoint.at(run / "checkpoints" / f"step-{STEPS:08d}")))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", thinned(state_cases(), QUICK), ids=lambda case: case.name)
def test_resume_in_the_same_shape_repeats_the_curve_bit_for_bit(
    first: dict[str, Any], resumed: dict[str, Any], case: Case
) -> None:
    assert resumed[case.name] == first[case.name]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", thinned(state_cases(), QUICK), ids=lambda case: case.name)
def test_masters_and_moments_move_bit_identical_into_every_other_shape(
    root: Path, cases: list[Case], resaved: Path, case: Case
) -> None:
    before = digests(saved(root, case))
    assert {kind for _, kind in before} == {"master", "exp_avg", "exp_avg_sq"}
    for target in cases:
        assert digests(saved(resaved / target.name, case)) == before, target.name

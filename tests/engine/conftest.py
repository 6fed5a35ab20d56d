"""Two rounds of launches for the whole directory: train, compare and save; then load everything everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.helpers import HALF, PARITY_STEPS, STAGES, Shape, launch, parity_cases, resaved, saved, state_case
from tests.matrix import selected

Results = dict[tuple[str, Any], Any]
"""Of (job, shape) for what is saved and loaded; a list of (job, world size) for the rest."""


@pytest.fixture(scope="package")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="package")
def shapes(request: pytest.FixtureRequest) -> list[Shape]:
    """The shapes of the tests of this folder that will run: each is loaded from each."""
    return selected(request, "shape")


@pytest.fixture(scope="package")
def first_round(root: Path, shapes: list[Shape]) -> Results:
    results: Results = {}
    for world in sorted({1, 2, *(shape.world for shape in shapes)}):
        jobs: dict[tuple[str, Any], list[dict[str, Any]]] = {}
        if world < 4:
            cases = parity_cases()
            jobs["parity", world] = [{"do": "parity", "case": case, "steps": PARITY_STEPS} for case in cases]
            jobs["not_finite", world] = [{"do": "not_finite", "case": state_case(stage)} for stage in STAGES]
        for shape in (shape for shape in shapes if shape.world == world):
            job = {"do": "train_and_save", "case": state_case(shape.stage), "steps": HALF}
            jobs["train_and_save", shape] = [{**job, "to": str(saved(root, shape))}]
        results |= _run(jobs, world, root / f"a{world}")
    return results


@pytest.fixture(scope="package")
def second_round(root: Path, shapes: list[Shape], first_round: Results) -> Results:
    """New processes that know only what the first round left on disk."""
    name = f"checkpoints/step-{HALF:08d}"
    results: Results = {}
    for world in sorted({shape.world for shape in shapes}):
        jobs: dict[tuple[str, Any], list[dict[str, Any]]] = {}
        for shape in (shape for shape in shapes if shape.world == world):
            case = state_case(shape.stage)
            jobs["resume", shape] = [{"do": "resume", "case": case, "from": str(saved(root, shape) / name)}]
            sources = [str(saved(root, source) / name) for source in shapes]
            to = [str(resaved(root, source, shape)) for source in shapes]
            jobs["reshard", shape] = [{"do": "reshard", "case": case, "from": sources, "to": to}]
        results |= _run(jobs, world, root / f"b{world}")
    return results


def _run(jobs: dict[tuple[str, Any], list[dict[str, Any]]], world: int, directory: Path) -> Results:
    every = [job for group in jobs.values() for job in group]
    results = iter(launch(Path(__file__).with_name("worker.py"), every, world, directory))
    return {
        key: next(results) if isinstance(key[1], Shape) else [next(results) for _ in group]
        for key, group in jobs.items()
    }

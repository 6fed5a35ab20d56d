"""Two rounds of launches for the whole directory: train, compare and save; then load everything everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.helpers import (
    HALF,
    PARITY_STEPS,
    STAGES,
    WORLD_SIZES,
    launch,
    parity_cases,
    resaved,
    saved,
    state_case,
)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="session")
def first_round(root: Path) -> dict[tuple[str, int], list[Any]]:
    """Results by (job, world size)."""
    return {
        key: value for world in WORLD_SIZES for key, value in _run(_first_jobs(root, world), world, root / f"a{world}")
    }


@pytest.fixture(scope="session")
def second_round(root: Path, first_round: dict[tuple[str, int], list[Any]]) -> dict[tuple[str, int], list[Any]]:
    """New processes that know only what the first round left on disk."""
    return {
        key: value for world in WORLD_SIZES for key, value in _run(_second_jobs(root, world), world, root / f"b{world}")
    }


def _first_jobs(root: Path, world: int) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []
    if world < 4:
        jobs += [{"do": "parity", "case": case, "steps": PARITY_STEPS} for case in parity_cases()]
        jobs += [{"do": "not_finite", "case": state_case(stage)} for stage in STAGES]
    for stage in STAGES:
        to = str(saved(root, stage, world))
        jobs.append({"do": "train_and_save", "case": state_case(stage), "steps": HALF, "to": to})
    return jobs


def _second_jobs(root: Path, world: int) -> list[dict[str, Any]]:
    name = f"checkpoints/step-{HALF:08d}"
    sources = [saved(root, stage, source) for stage in STAGES for source in WORLD_SIZES]
    jobs: list[dict[str, Any]] = []
    for stage in STAGES:
        case = state_case(stage)
        jobs.append({"do": "resume", "case": case, "from": str(saved(root, stage, world) / name)})
        to = [str(resaved(root, source, stage, world)) for source in sources]
        jobs.append({"do": "reshard", "case": case, "from": [str(source / name) for source in sources], "to": to})
    return jobs


def _run(jobs: list[dict[str, Any]], world: int, directory: Path) -> list[tuple[tuple[str, int], list[Any]]]:
    results = launch(Path(__file__).with_name("worker.py"), jobs, world, directory)
    grouped: dict[str, list[Any]] = {}
    for job, result in zip(jobs, results, strict=True):
        grouped.setdefault(job["do"], []).append(result)
    return [((do, world), values) for do, values in grouped.items()]

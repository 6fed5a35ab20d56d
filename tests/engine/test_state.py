"""Training state survives a new process, another ZeRO stage and another world size, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bigtrain.checkpoint import ALONE, Fragment, Search, StorageTiers, load, newest_verified
from tests.engine.helpers import HALF, STAGES, WORLD_SIZES, resaved, saved


def everything(run: Path) -> dict[tuple[str, str], torch.Tensor]:
    """All tensors of all kinds, whole."""
    found: Search = newest_verified(StorageTiers.of(run))
    assert found.newest is not None and not found.rejected
    manifest = found.newest.manifest
    whole = [
        Fragment(name, kind, tuple(shape), 0, torch.full((torch.Size(shape).numel(),), torch.nan))
        for name, shape in manifest.tensors.items()
        for kind in manifest.kinds
    ]
    load(found.newest, whole, ranks=ALONE)
    return {(fragment.name, fragment.kind): fragment.data for fragment in whole}


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLD_SIZES)
def test_resume_at_the_same_world_size_repeats_the_curve_bit_for_bit(
    first_round: dict[Any, Any], second_round: dict[Any, Any], world: int
) -> None:
    assert second_round["resume", world] == first_round["train_and_save", world]


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLD_SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_masters_and_moments_move_bit_identical_between_shapes(
    root: Path, second_round: dict[Any, Any], stage: int, world: int
) -> None:
    """Masters and moments move bit identical from every stage and world size."""
    results = second_round["reshard", world][stage]
    assert results == [{"weights_are_rounded_masters": True, "optimizer_steps": HALF}] * 12
    for source in (saved(root, s, w) for s in STAGES for w in WORLD_SIZES):
        before, after = everything(source), everything(resaved(root, source, stage, world))
        assert before.keys() == after.keys() and {kind for _, kind in before} == {"master", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_state_is_stored_once_whatever_the_number_of_ranks(root: Path, first_round: dict[Any, Any], stage: int) -> None:
    parameters = sum(t.numel() for (_, kind), t in everything(saved(root, stage, 1)).items() if kind == "master")
    for world in WORLD_SIZES:
        files = (saved(root, stage, world) / f"checkpoints/step-{HALF:08d}").glob("*.safetensors")
        payload = sum(path.stat().st_size for path in files)
        assert 12 * parameters < payload < 12 * parameters + world * 16_000  # and headers, and random state

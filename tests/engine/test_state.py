"""Training state survives a new process, another ZeRO stage and another world size, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bigtrain.base import ALONE
from bigtrain.checkpoint import Fragment, Search, StorageTiers, load, newest_verified
from tests.engine.helpers import HALF, QUICK_SHAPES, SHAPES, Shape, resaved, saved
from tests.matrix import thinned


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
@pytest.mark.parametrize("shape", thinned(SHAPES, QUICK_SHAPES), ids=str)
def test_resume_in_the_same_shape_repeats_the_curve_bit_for_bit(
    first_round: dict[Any, Any], second_round: dict[Any, Any], shape: Shape
) -> None:
    assert second_round["resume", shape] == first_round["train_and_save", shape]


@pytest.mark.slow
@pytest.mark.parametrize("shape", thinned(SHAPES, QUICK_SHAPES), ids=str)
def test_masters_and_moments_move_bit_identical_between_shapes(
    root: Path, shapes: list[Shape], second_round: dict[Any, Any], shape: Shape
) -> None:
    """Masters and moments move bit identical from every stage and world size."""
    results = second_round["reshard", shape]
    assert results == [{"weights_are_rounded_masters": True, "optimizer_steps": HALF}] * len(shapes)
    for source in shapes:
        before, after = everything(saved(root, source)), everything(resaved(root, source, shape))
        assert before.keys() == after.keys() and {kind for _, kind in before} == {"master", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
@pytest.mark.parametrize("shape", thinned(SHAPES, QUICK_SHAPES), ids=str)
def test_state_is_stored_once_whatever_the_number_of_ranks(
    root: Path, first_round: dict[Any, Any], shape: Shape
) -> None:
    run = saved(root, shape)
    parameters = sum(t.numel() for (_, kind), t in everything(run).items() if kind == "master")
    files = (run / f"checkpoints/step-{HALF:08d}").glob("*.safetensors")
    payload = sum(path.stat().st_size for path in files)
    assert 12 * parameters < payload < 12 * parameters + shape.world * 16_000  # and headers, and random state

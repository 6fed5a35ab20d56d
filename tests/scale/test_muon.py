"""Muon's tables are of the size of what a rank owns, not of matrices times ranks."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable

import torch

from bigtrain.engine.fragments import OwnedRange
from bigtrain.engine.muon import Muon
from tests.scale.growth import assert_grows, cpu_seconds

LAYERS = 4


def optimizer_of(ranks: int, rank: int) -> tuple[Muon, list[torch.Tensor], list[OwnedRange]]:
    """Stacks of experts at ZeRO stage 3, each cut into equal parts; the more ranks, the more experts."""
    stack = (ranks // 8, 64, 32)
    part = math.prod(stack) // ranks
    owner = torch.zeros(LAYERS * part)
    names = [f"layers.{layer}.experts" for layer in range(LAYERS)]
    ranges = [OwnedRange(name, stack, rank * part, part, owner, n * part) for n, name in enumerate(names)]
    group = {"params": [owner], "algorithm": "muon", "matrices": dict.fromkeys(names, stack)}
    return Muon([group], momentum=0.9, betas=(0.9, 0.9), eps=1e-8), [owner], ranges


def test_tables_grow_with_experts_and_with_ranks_not_with_their_product(join_as: Callable[[int, int], None]) -> None:
    def peak_bytes(ranks: int) -> int:
        join_as(ranks // 2, ranks)
        optimizer, owners, ranges = optimizer_of(ranks, ranks // 2)
        tracemalloc.start()
        optimizer.locate(owners, ranges, spread=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    def seconds(ranks: int) -> float:
        join_as(ranks // 2, ranks)
        optimizer, owners, ranges = optimizer_of(ranks, ranks // 2)
        return cpu_seconds(lambda: optimizer.locate(owners, ranges, spread=True))

    assert_grows([256, 1024, 4096], peak_bytes, at_most=1)
    assert_grows([256, 1024, 4096], seconds, at_most=1, slack=0.4)

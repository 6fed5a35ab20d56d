"""Training state without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bigtrain.base import RankTree
from bigtrain.checkpoint import Checkpoint, Cursor, Fragment, StorageTiers, save
from tests.ranks import on_ranks

SHAPES: dict[str, tuple[int, ...]] = {"embed.weight": (7, 3), "layers.0/odd name.weight": (5,), "norm.weight": (1,)}
KINDS = ("master", "exp_avg", "exp_avg_sq")
MATHEMATICS = {"optimizer.learning_rate": 0.1, "optimizer.betas": [0.9, 0.95], "model.hidden_size": 3}


def tensors(seed: int = 0) -> dict[tuple[str, str], torch.Tensor]:
    """Every bit pattern float32 has, NaN payloads among them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        (name, kind): torch.randint(-(2**31), 2**31 - 1, (torch.Size(shape).numel(),), generator=generator)
        .to(torch.int32)
        .view(torch.float32)
        for name, shape in SHAPES.items()
        for kind in KINDS
    }


def cut(state: dict[tuple[str, str], torch.Tensor], cuts: dict[str, Sequence[int]], rank: int) -> list[Fragment]:
    """Rank's fragments, as copies: cuts[name] are the bounds between ranks, world_size + 1 of them."""
    pieces = []
    for (name, kind), tensor in state.items():
        start, end = cuts[name][rank], cuts[name][rank + 1]
        if start < end:
            pieces.append(Fragment(name, kind, SHAPES[name], start, tensor[start:end].clone()))
    return pieces


def even(world_size: int) -> dict[str, list[int]]:
    sizes = {name: torch.Size(shape).numel() for name, shape in SHAPES.items()}
    return {name: [rank * size // world_size for rank in range(world_size + 1)] for name, size in sizes.items()}


def save_step(run: Path | StorageTiers, step: int, world_size: int = 2, seed: int = 0) -> list[Checkpoint | Exception]:
    """A checkpoint of `tensors(seed)`, cut evenly."""

    def work(ranks: RankTree) -> Checkpoint:
        own = cut(tensors(seed), even(world_size), ranks.rank)
        return save_fragments(run, step, own, ranks)

    return on_ranks(world_size, work)


def save_fragments(run: Path | StorageTiers, step: int, own: list[Fragment], ranks: Any) -> Checkpoint:
    places = StorageTiers.of(run) if isinstance(run, Path) else run
    return save(places, **described(step, own, ranks), ranks=ranks)


def described(step: int, own: list[Fragment], ranks: Any) -> dict[str, Any]:
    """The arguments of a save."""
    return {
        "cursor": Cursor(step, step * 8, "plan-a", step),
        "fragments": own,
        "rng": {"cpu": torch.arange(5, dtype=torch.uint8) + ranks.rank},
        "mathematics": MATHEMATICS,
        "zero_stage": 2,
        "state": {"wandb_run_id": "abc"},
    }


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))

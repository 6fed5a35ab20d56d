"""The one unit of training state that engine and checkpoint exchange: a flat piece of a named tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

MASTER = "master"
"""The kind of the float32 weights; every other kind is a moment of the optimizer, under the optimizer's own name."""


@dataclass(frozen=True)
class Fragment:
    """Elements [offset, offset + data.numel()) of one flattened tensor, as one rank holds them.

    Knows neither ZeRO stage nor rank: a checkpoint is a set of fragments, and whoever needs other ones cuts and
    joins them by name, kind and offset.
    """

    name: str
    """The parameter's name in the model."""
    kind: str
    """What of the parameter: `master`, or a moment such as `exp_avg`."""
    shape: tuple[int, ...]
    """The shape of the whole parameter."""
    offset: int
    """Where the piece begins, in elements of the flattened parameter."""
    data: torch.Tensor
    """1-D float32 view of live memory [length]: saving reads it, loading writes it."""
    replicated: bool = False
    """Whether every rank holds the same piece; then each rank saves only its share of it."""

    @property
    def size(self) -> int:
        """Elements of the whole parameter."""
        return math.prod(self.shape)

    def share(self, rank: int, world_size: int) -> Fragment:
        """The part that this rank has to save: all of it, or an equal slice where every rank holds the same."""
        if not self.replicated:
            return self
        length = self.data.numel()
        start, end = rank * length // world_size, (rank + 1) * length // world_size
        return Fragment(self.name, self.kind, self.shape, self.offset + start, self.data[start:end], True)

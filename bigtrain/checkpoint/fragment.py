"""The one unit of training state that engine and checkpoint exchange: a flat piece of a named tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

MASTER = "master"
"""The kind of the float32 weights; every other kind is a moment of the optimizer, under the optimizer's own name."""


@dataclass(frozen=True)
class TensorShard:
    """The part of a parameter that ranks which share its matrix product hold: [start, start + length) of one dimension.

    Flattened, a shard of dimension 0 is a range of the flattened parameter; one of dimension 1 is a comb.
    """

    dim: int
    start: int
    length: int


@dataclass(frozen=True)
class Fragment:
    """Elements [offset, offset + data.numel()) of one flattened tensor, or of a flattened shard of it, as one rank
    holds them.

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
    """Where the piece begins, in elements of the flattened parameter, or of its flattened shard."""
    data: torch.Tensor
    """1-D float32 view of live memory [length]: saving reads it, loading writes it."""
    shard: TensorShard | None = None
    """The shard that the piece is of, where tensor parallelism has cut the parameter."""
    holder: int = 0
    """Which of the ranks that hold this very piece this one is."""
    holders: int = 1
    """How many ranks hold this very piece: each saves an equal part of it, and all load the whole of it."""

    @property
    def size(self) -> int:
        """Elements of the whole parameter."""
        return math.prod(self.shape)

    def share(self) -> Fragment:
        """The part that this rank has to save: all of it, or an equal slice where others hold the same."""
        length = self.data.numel()
        start, end = (i * length // self.holders for i in (self.holder, self.holder + 1))
        return replace(self, offset=self.offset + start, data=self.data[start:end])

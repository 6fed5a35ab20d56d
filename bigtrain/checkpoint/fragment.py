"""The unit of training state that engine and checkpoint exchange: a flat piece of a named tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

MASTER = "master"
"""The kind of the float32 weights. Every other kind is a moment of the optimizer, by the optimizer's name for it."""


@dataclass(frozen=True)
class TensorShard:
    """The part of a parameter that one of the tensor-parallel ranks holds: [start, start + length) of one dimension.

    A shard of dimension 0 is one range of the flattened parameter; a shard of dimension 1 is a range of every row.
    """

    dim: int
    start: int
    length: int


@dataclass(frozen=True)
class Fragment:
    """Elements [offset, offset + data.numel()) of one flattened tensor, or of a flattened shard of it, as one rank
    holds them.

    It depends on neither ZeRO stage nor rank: a checkpoint is a set of fragments, and other fragments are made from
    them by name, kind and offset.
    """

    name: str
    """The parameter's name in the model."""
    kind: str
    """`master`, or a moment of the optimizer such as `exp_avg`."""
    shape: tuple[int, ...]
    """The shape of the whole parameter."""
    offset: int
    """First element of the piece, in the flattened parameter or its flattened shard."""
    data: torch.Tensor
    """[length], float32: a view of the memory of the training. Saving reads it, loading writes it."""
    shard: TensorShard | None = None
    """The shard of which this is a piece, if tensor parallelism divides the parameter."""
    holder: int = 0
    """This rank's number among the ranks that hold the same piece."""
    holders: int = 1
    """Number of ranks that hold the same piece. Each saves an equal part of it, and all load the whole piece."""

    @property
    def size(self) -> int:
        """Elements of the whole parameter."""
        return math.prod(self.shape)

    def share(self) -> Fragment:
        """The part that this rank saves: all of it, or an equal slice where other ranks hold the same piece."""
        length = self.data.numel()
        start, end = (i * length // self.holders for i in (self.holder, self.holder + 1))
        return replace(self, offset=self.offset + start, data=self.data[start:end])

"""How tensors of ours become tensors of theirs, and back.

joined     theirs is one of ours, or several, one below the other; transposed where it is GPT-2's `Conv1D`, [in, out]
by head    queries, keys and values of a head follow each other: [heads, 3, head_dim] rows (gpt_neox)
heads last columns, or a vector, are [heads, head_dim] there; a matrix may be transposed first (xlnet)
row        a vector of ours is a matrix of one row there, or one of zeros, which ours lacks
stacked    one of ours, [experts, ...], is a tensor for each expert there

Every layout works on tensors without data as well: that is how shapes are known before anything is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bigtrain.base import BigtrainError


class TensorLayout(Protocol):
    """One of the ways above."""

    def to_theirs(self, ours: Sequence[Tensor]) -> Sequence[Tensor]:
        """Their tensors from ours."""

    def to_ours(self, theirs: Sequence[Tensor], rows: Sequence[int]) -> Sequence[Tensor]:
        """Ours from theirs. `rows`: the first dimension of each of ours."""


@dataclass(frozen=True)
class Joined:
    """One below the other, and a matrix transposed where the family has it so."""

    transposed: bool = False

    def to_theirs(self, ours: Sequence[Tensor]) -> Sequence[Tensor]:
        """Join."""
        joined = torch.cat(list(ours)) if len(ours) > 1 else ours[0]
        return [joined.T if self.transposed and joined.dim() == 2 else joined]

    def to_ours(self, theirs: Sequence[Tensor], rows: Sequence[int]) -> Sequence[Tensor]:
        """Part."""
        (joined,) = theirs
        return torch.split(joined.T if self.transposed and joined.dim() == 2 else joined, list(rows))


@dataclass(frozen=True)
class ByHead:
    """Head by head, of each its part of every tensor."""

    heads: int

    def to_theirs(self, ours: Sequence[Tensor]) -> Sequence[Tensor]:
        """Interleave."""
        return [torch.stack([torch.unflatten(tensor, 0, (self.heads, -1)) for tensor in ours], dim=1).flatten(0, 2)]

    def to_ours(self, theirs: Sequence[Tensor], rows: Sequence[int]) -> Sequence[Tensor]:
        """Pick apart."""
        (mixed,) = theirs
        return [part.flatten(0, 1) for part in torch.unflatten(mixed, 0, (self.heads, len(rows), -1)).unbind(1)]


@dataclass(frozen=True)
class HeadsLast:
    """The last dimension as two, heads and their width."""

    heads: int
    transposed: bool = False

    def to_theirs(self, ours: Sequence[Tensor]) -> Sequence[Tensor]:
        """Divide it."""
        (tensor,) = ours
        return [torch.unflatten(tensor.T if self.transposed else tensor, -1, (self.heads, -1))]

    def to_ours(self, theirs: Sequence[Tensor], rows: Sequence[int]) -> Sequence[Tensor]:
        """Join it."""
        (divided,) = theirs
        joined = divided.flatten(-2)
        return [joined.T if self.transposed else joined]


@dataclass(frozen=True)
class Stacked:
    """A tensor for each expert."""

    def to_theirs(self, ours: Sequence[Tensor]) -> Sequence[Tensor]:
        """Unstack."""
        (stack,) = ours
        return stack.unbind(0)

    def to_ours(self, theirs: Sequence[Tensor], rows: Sequence[int]) -> Sequence[Tensor]:
        """Stack."""
        return [torch.stack(list(theirs))]


@dataclass(frozen=True)
class OneRow:
    """A vector as a matrix of one row, or a matrix with another dimension before it. Where ours has no such vector,
    theirs is zero."""

    width: int

    def to_theirs(self, ours: Sequence[Tensor]) -> Sequence[Tensor]:
        """Add a dimension."""
        return [ours[0][None] if ours else torch.zeros(1, self.width)]

    def to_ours(self, theirs: Sequence[Tensor], rows: Sequence[int]) -> Sequence[Tensor]:
        """Take it away. Raises BigtrainError where a row that ours lacks is not zero."""
        (row,) = theirs
        if rows:
            return [row[0]]
        if not row.is_meta and row.any():
            raise BigtrainError(
                "the logits of this model have a bias, which its family here has not",
                found=f"{int(row.count_nonzero())} numbers that are not 0",
                wanted="zeros",
            )
        return []

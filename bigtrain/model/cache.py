"""What generation keeps of the tokens so far: where each row stands, and what an architecture adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch


class Cache:
    """A batch of rows that grow by one token at a time."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        """Of prompts of these lengths, which the first forward pass brings packed, end to end."""
        self.lengths = list(lengths)
        """Tokens that each row has."""
        self.cu_seqlens = boundaries(lengths, device)
        self.positions = torch.tensor(self.lengths, device=device)
        """[B] where the token at hand stands in its row."""

    @property
    def prompt_positions(self) -> torch.Tensor:
        """[1, N] the positions of the packed prompts' tokens."""
        return packed_positions(self.cu_seqlens)

    @property
    def longest(self) -> int:
        """Tokens of the longest row, the one at hand included."""
        return max(self.lengths) + 1

    def advance(self) -> None:
        """The token at hand is in all layers: go on to the next."""
        self.lengths = [length + 1 for length in self.lengths]
        self.positions = self.positions + 1

    def keep(self, rows: Sequence[int]) -> None:
        """Leave only these rows, by number and in this order."""
        self.lengths = [self.lengths[row] for row in rows]
        self.positions = self.positions[torch.tensor(rows, dtype=torch.int64, device=self.positions.device)]


def boundaries(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """cu_seqlens [B + 1] of rows that are packed end to end."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def of_whole_rows(ids: torch.Tensor) -> torch.Tensor:
    """cu_seqlens [B + 1] of rows [B, T] of one document each."""
    batch, length = ids.shape
    return torch.arange(batch + 1, device=ids.device, dtype=torch.int32) * length


def packed_positions(cu_seqlens: torch.Tensor) -> torch.Tensor:
    """[1, N] the positions of the tokens of packed rows."""
    starts = cu_seqlens[:-1].repeat_interleave(cu_seqlens.diff())
    return (torch.arange(len(starts), device=starts.device) - starts)[None]

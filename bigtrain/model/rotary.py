"""Rotary position embedding (Su et al., 2021), in Hugging Face's convention: a head's first and second half rotate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotary(NamedTuple):
    """Cosine and sine of every token's angles, [B, T, 1, D]: one rotation shared by all heads and all layers."""

    cos: Tensor
    sin: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        """Turn queries or keys x, [B, T, H, D], by their positions."""
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat((-second, first), dim=-1) * self.sin


def rotary_at(position_ids: Tensor, head_width: int, theta: float, dtype: torch.dtype) -> Rotary:
    """The rotation for each position, angles theta^(-2i/D) * position in float32.

    Computed anew in each forward pass, which costs less than a layer's norm: a table held as a buffer would follow
    the model to bfloat16, where positions above 256 are no longer distinct.

    Args:
        position_ids: [B, T] integers.
        head_width: D, even.
        theta: base of the frequencies.
        dtype: type of the result, that of the queries and keys.
    """
    exponents = torch.arange(0, head_width, 2, device=position_ids.device, dtype=torch.int64).float() / head_width
    frequencies = 1.0 / (theta**exponents)
    angles = position_ids[:, :, None, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return Rotary(angles.cos().to(dtype), angles.sin().to(dtype))

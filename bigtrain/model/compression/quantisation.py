"""Matrices of small integers: a row is cut into groups of columns, and each group has one scale.

    weight [out, in] --scales--> [out, groups], absmax / largest code
    weight / scale --rounded--> codes [out, in] --times scale--> weight again

It is symmetric: the code of 0 is 0, so that a pruned weight stays one. A scale is rounded to bfloat16 before codes are
chosen, and a code times a scale is exact in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BITS = {"int8": 8, "int4": 4}
"""Bits of a code, by the names of the types."""


@dataclass(frozen=True)
class QuantisedMatrix:
    """A matrix [out, in] as codes and scales."""

    codes: Tensor
    """int8 [out, in]."""
    scales: Tensor
    """bfloat16 [out, groups]."""
    bits: int
    group_size: int
    """Columns that share a scale; the last group of a row may have fewer."""

    def dequantised(self) -> Tensor:
        """The matrix [out, in] in float32, exactly."""
        return self.codes.float() * _over_columns(self.scales.float(), self.group_size, self.codes.shape[1])

    def stored(self) -> tuple[Tensor, Tensor]:
        """What is written: the codes, of 4 bits two in a byte, and the scales."""
        return packed(self.codes) if self.bits == 4 else self.codes, self.scales

    @classmethod
    def of_stored(cls, codes: Tensor, scales: Tensor, bits: int, group_size: int, columns: int) -> QuantisedMatrix:
        """The matrix of these columns from what `stored` gives."""
        return cls(unpacked(codes, columns) if bits == 4 else codes, scales, bits, group_size)


def largest_code(bits: int) -> int:
    """Codes go from minus this to this."""
    return int(2 ** (bits - 1)) - 1


def group_scales(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """The scales [out, groups] of a matrix [out, in], in its type, at numbers that bfloat16 has."""
    rows, columns = weight.shape
    groups = -(-columns // group_size)
    largest = F.pad(weight.abs(), (0, groups * group_size - columns)).view(rows, groups, group_size).amax(dim=2)
    scales = (largest / largest_code(bits)).to(torch.bfloat16)
    return torch.where(scales == 0, torch.ones_like(scales), scales).to(weight.dtype)


def nearest_codes(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The codes nearest to weight / scale, in the weight's type; `scales` has the weight's shape, or one that spreads
    to it."""
    most = largest_code(bits)
    return (weight / scales).round().clamp(-most, most)


def quantised(weight: Tensor, bits: int, group_size: int) -> QuantisedMatrix:
    """A matrix [out, in], each weight rounded to the nearest code."""
    scales = group_scales(weight, bits, group_size)
    codes = nearest_codes(weight, _over_columns(scales, group_size, weight.shape[1]), bits)
    return QuantisedMatrix(codes.to(torch.int8), scales.to(torch.bfloat16), bits, group_size)


def rounded(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """What `quantised` makes of a matrix, as numbers in the matrix's type."""
    return quantised(weight, bits, group_size).dequantised().to(weight.dtype)


def packed(codes: Tensor) -> Tensor:
    """Codes of 4 bits [out, in] as bytes, uint8 [out, ceil(in / 2)]: code + 8, the first of two in the lower half."""
    nibbles = F.pad((codes + 8).to(torch.uint8), (0, codes.shape[1] % 2), value=8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpacked(stored: Tensor, columns: int) -> Tensor:
    """The codes, int8 [out, columns], of bytes that `packed` made."""
    nibbles = torch.stack((stored & 15, stored >> 4), dim=2).flatten(1)
    return nibbles[:, :columns].to(torch.int8) - 8


def _over_columns(scales: Tensor, group_size: int, columns: int) -> Tensor:
    """The scale of each weight [out, in]."""
    return scales.repeat_interleave(group_size, dim=1)[:, :columns]

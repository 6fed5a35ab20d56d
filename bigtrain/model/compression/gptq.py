"""GPTQ: codes that are chosen one column after the other, each correcting the errors before it (Frantar et al., 2023).

For a layer with inputs X the error |W X - Q X|^2 is a quadratic form with the Hessian H = X X^T. When column i is
rounded, the columns after it move by -(w_i - q_i) / [H^-1]_ii [H^-1]_i, with the inverse over the columns from i on.
The rows of the upper Cholesky factor of H^-1 are these vectors, so no inverse is updated (section 3.3 there).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigtrain.model.compression.quantisation import QuantisedMatrix, group_scales, nearest_codes

DAMPING = 0.01
"""Share of the mean of the diagonal that is added to it, as in the paper."""
BLOCK = 128
"""Columns after which the corrections of all others are made, as in the paper: it changes speed alone."""


def gptq(
    weight: Tensor, hessian: Tensor, bits: int, group_size: int, *, damping: float = DAMPING, block: int = BLOCK
) -> QuantisedMatrix:
    """Quantise a matrix so that its products with the calibration inputs change little.

    A weight that is 0 stays 0: a pruned matrix keeps its mask. The scales of a group are those of the moved weights
    when its first column is reached.

    Args:
        weight: [out, in], floating point.
        hessian: [in, in], the sum over tokens of x x^T, in the weight's type.
        bits: of a code.
        group_size: columns that share a scale.
        damping: see `DAMPING`.
        block: see `BLOCK`.
    """
    moved, kept = weight.clone(), weight != 0
    factor = _factor(hessian, damping)
    codes = torch.zeros_like(moved)
    all_scales: list[Tensor] = []
    columns = weight.shape[1]
    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        errors = torch.zeros_like(moved[:, begin:end])
        for i in range(begin, end):
            if i % group_size == 0:
                # what the columns before this block do to the group is there; what this block does to later ones is not
                group = moved[:, i : i + group_size].clone()
                if i + group_size > end:
                    group[:, end - i :] -= errors[:, : i - begin] @ factor[begin:i, end : i + group_size]
                all_scales.append(group_scales(group, bits, group_size))
            scales = all_scales[-1][:, 0]
            codes[:, i] = torch.where(kept[:, i], nearest_codes(moved[:, i], scales, bits), 0)
            error = (moved[:, i] - codes[:, i] * scales) / factor[i, i]
            moved[:, i:end] -= error[:, None] * factor[i, i:end]
            errors[:, i - begin] = error
        moved[:, end:] -= errors @ factor[begin:end, end:]
    scales = torch.cat(all_scales, dim=1).to(torch.bfloat16)
    return QuantisedMatrix(codes.to(torch.int8), scales, bits, group_size)


def _factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped Hessian. A feature that was always 0 has a diagonal of
    1 first, so that its column is rounded as it is."""
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)

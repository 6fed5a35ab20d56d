"""Which weights of a matrix stay: masks from scores, and the scores.

Every mask keeps an exact number of weights. Of equal scores those that come first are pruned first, so a mask is a
function of the scores alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bigtrain.base import BigtrainError


def number_pruned(count: int, sparsity: float) -> int:
    """How many of `count` weights are pruned at a sparsity in [0, 1): rounded down."""
    return int(count * sparsity + 1e-9)  # 0.29 * 100 is 28.999...


def wanda_scores(weight: Tensor, squares: Tensor) -> Tensor:
    """|W| times the norm of each input feature (Sun et al., 2023, equation 1).

    Args:
        weight: [out, in].
        squares: [in], the sum over the calibration tokens of the squares of the inputs.

    Returns:
        [out, in].
    """
    return weight.abs() * squares.sqrt()


def keep_of_tensor(scores: Tensor, sparsity: float) -> Tensor:
    """The mask of a tensor of any shape that leaves out the share `sparsity` with the lowest scores; bool."""
    return _keep_of_last(scores.flatten(), number_pruned(scores.numel(), sparsity)).view(scores.shape)


def keep_of_rows(scores: Tensor, sparsity: float) -> Tensor:
    """The same within each row of [out, in]: all outputs keep as many inputs."""
    return _keep_of_last(scores, number_pruned(scores.shape[-1], sparsity))


def keep_of_all(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """The same over several tensors together, of any shapes: memory holds all their scores twice."""
    flat = keep_of_tensor(torch.cat([each.flatten() for each in scores]), sparsity)
    parts = torch.split(flat, [each.numel() for each in scores])
    return [part.view(each.shape) for part, each in zip(parts, scores, strict=True)]


def keep_of_groups(scores: Tensor, kept: int, of: int) -> Tensor:
    """The mask of [out, in] that keeps `kept` weights of each `of` neighbours in a row, as 2:4 sparsity has it.

    Raises:
        BigtrainError: a row does not divide into such groups.
    """
    if scores.shape[-1] % of:
        raise BigtrainError(
            f"a row does not divide into groups of {of} weights",
            found=f"a matrix {list(scores.shape)}",
            wanted=f"a multiple of {of} columns",
            fix="give a sparsity, which needs no groups",
        )
    grouped = scores.reshape(*scores.shape[:-1], -1, of)
    return _keep_of_last(grouped, of - kept).view(scores.shape)


def cubic_sparsity(step: int, start: int, end: int, final: float) -> float:
    """The sparsity after a step: 0 until `start`, `final` from `end` on, and a cubic between (Zhu and Gupta, 2017)."""
    if step <= start:
        return 0.0
    if step >= end:
        return final
    return final * (1 - (1 - (step - start) / (end - start)) ** 3)


def _keep_of_last(scores: Tensor, pruned: int) -> Tensor:
    """The mask that leaves out the `pruned` lowest scores along the last dimension."""
    if not pruned:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(pruned, dim=-1, keepdim=True).values  # a tenth of the time of sorting
    below, equal = scores < threshold, scores == threshold
    left = pruned - below.sum(dim=-1, keepdim=True)
    return ~(below | (equal & (equal.cumsum(dim=-1) <= left)))

"""How far a model's distribution is from a teacher's, summed over places (Hinton, Vinyals and Dean, 2015).

    T^2 KL(softmax(teacher / T) || softmax(student / T))

T^2 keeps the size of the gradient the same at any temperature T. The logits of a few places at a time are in memory:
each part is computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_LOGITS_AT_ONCE = 1 << 22
"""Of the student, and as many of the teacher."""
Head = Callable[[Tensor], Tensor]
"""From states [n, C] to logits [n, V]."""


class Spread(NamedTuple):
    """How distributions are compared."""

    temperature: float
    """T."""
    classes: int
    """V."""


def from_teacher(student: Head, hidden: Tensor, teacher: Head, teacher_hidden: Tensor, spread: Spread) -> Tensor:
    """The sum over n places, a float32 scalar (float64 for float64 states), in nats. No gradient goes to the teacher.

    Args:
        student: the head that learns.
        hidden: [n, C].
        teacher: the head of the teacher.
        teacher_hidden: [n, C'].
        spread: temperature and classes.
    """
    temperature = spread.temperature

    def part(own: Tensor, theirs: Tensor) -> Tensor:
        with torch.no_grad():
            target = _widened(teacher(theirs)).div(temperature).log_softmax(-1)
        found = _widened(student(own)).div(temperature).log_softmax(-1)
        return temperature**2 * torch.sum(target.exp() * (target - found))

    return _over_parts(part, spread.classes, hidden, teacher_hidden)


def _over_parts(part: Callable[..., Tensor], classes: int, hidden: Tensor, *others: Tensor) -> Tensor:
    rows = max(1, _LOGITS_AT_ONCE // classes)
    total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    for arrays in zip(*(torch.split(each, rows) for each in (hidden, *others)), strict=True):
        total = total + checkpoint(part, *arrays, use_reentrant=False)
    return total


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))

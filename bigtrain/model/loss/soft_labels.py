"""How far a model's distribution is from a teacher's, summed over places (Hinton, Vinyals and Dean, 2015).

    T^2 KL(softmax(teacher / T) || softmax(student / T))

T^2 keeps the size of the gradient the same at any temperature T. Of a teacher whose k likeliest classes were kept, all
others count as one class, in both distributions: by the chain rule of the divergence that is at most the whole one, and
equal to it where the two differ nowhere else. The logits of a few places at a time are in memory: each part is computed
again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Likeliest(NamedTuple):
    """What is kept of logits at n places. At temperature T a class has the probability exp(log_prob / T - scale)."""

    classes: Tensor
    """[n, k] int64, the likeliest ones."""
    log_probs: Tensor
    """[n, k], theirs at temperature 1, in nats."""
    scales: Tensor
    """[n, temperatures], log of the sum of exp(log_prob / T) over all classes."""


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


def from_kept(student: Head, hidden: Tensor, classes: Tensor, log_probs: Tensor, spread: Spread) -> Tensor:
    """The same of a teacher whose k likeliest classes were kept; all others count as one.

    Args:
        student: the head that learns.
        hidden: [n, C].
        classes: [n, k] int64.
        log_probs: [n, k], of these classes, of the teacher at temperature T, in nats.
        spread: temperature and classes.
    """
    temperature, all_kept = spread.temperature, classes.shape[-1] == spread.classes

    def part(own: Tensor, kept: Tensor, known: Tensor) -> Tensor:
        every = _widened(student(own)).div(temperature).log_softmax(-1)
        target = known.to(every.dtype)
        divergence = torch.sum(target.exp() * (target - every.gather(-1, kept)))
        if not all_kept:
            rest = (1 - target.exp().sum(-1)).clamp(min=0)  # where rounding leaves nothing, nothing is learned of it
            found = every.scatter(-1, kept, -torch.inf).logsumexp(-1)
            divergence = divergence + torch.sum(torch.xlogy(rest, rest) - rest * found)
        return temperature**2 * divergence

    return _over_parts(part, spread.classes, hidden, classes, log_probs)


@torch.no_grad()
def likeliest(head: Head, hidden: Tensor, count: int, temperatures: Sequence[float], classes: int) -> Likeliest:
    """What a head says at n places, as far as it is kept: in float32 (float64 for float64 states).

    Args:
        head: of the teacher.
        hidden: [n, C].
        count: k, at most `classes`.
        temperatures: at which the result can be read.
        classes: V.
    """
    parts = []
    for states in torch.split(hidden, max(1, _LOGITS_AT_ONCE // classes)):
        every = _widened(head(states)).log_softmax(-1)
        log_probs, chosen = every.topk(count, dim=-1)
        scales = torch.stack([every.div(temperature).logsumexp(-1) for temperature in temperatures], dim=-1)
        parts.append(Likeliest(chosen, log_probs, scales))
    return Likeliest(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _over_parts(part: Callable[..., Tensor], classes: int, hidden: Tensor, *others: Tensor) -> Tensor:
    rows = max(1, _LOGITS_AT_ONCE // classes)
    total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    for arrays in zip(*(torch.split(each, rows) for each in (hidden, *others)), strict=True):
        total = total + checkpoint(part, *arrays, use_reentrant=False)
    return total


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))

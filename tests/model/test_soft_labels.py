"""Promises of distillation's loss: it is the divergence from the teacher, whatever is in memory at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bigtrain.model.loss import soft_labels
from bigtrain.model.loss.soft_labels import Spread, from_teacher

PLACES, WIDTH, CLASSES = 37, 8, 50


def heads() -> tuple[torch.nn.Linear, torch.nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    student = torch.nn.Linear(WIDTH, CLASSES, dtype=torch.float64)
    teacher = torch.nn.Linear(2 * WIDTH, CLASSES, dtype=torch.float64)
    hidden = torch.randn(PLACES, WIDTH, dtype=torch.float64, requires_grad=True)
    return student, teacher, hidden, torch.randn(PLACES, 2 * WIDTH, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_value_and_gradient_are_those_of_the_divergence(temperature, monkeypatch) -> None:
    monkeypatch.setattr(soft_labels, "_LOGITS_AT_ONCE", 5 * CLASSES)
    student, teacher, hidden, states = heads()
    found = from_teacher(student, hidden, teacher, states, Spread(temperature, CLASSES))
    ours = torch.autograd.grad(found, [hidden, student.weight])
    own, target = ((head(x) / temperature).log_softmax(-1) for head, x in ((student, hidden), (teacher, states)))
    wanted = temperature**2 * F.kl_div(own, target.detach(), reduction="sum", log_target=True)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(ours, torch.autograd.grad(wanted, [hidden, student.weight]), strict=True):
        torch.testing.assert_close(one, other)


def test_nothing_is_learned_by_the_teacher() -> None:
    student, teacher, hidden, states = heads()
    from_teacher(student, hidden, teacher, states, Spread(1.0, CLASSES)).backward()
    assert states.grad is None and teacher.weight.grad is None and hidden.grad is not None

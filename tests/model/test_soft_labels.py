"""Promises of distillation's loss: it is the divergence from the teacher, whatever is in memory at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.model.loss import soft_labels
from bigtrain.model.loss.soft_labels import Spread, from_kept, from_teacher, likeliest

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


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, CLASSES),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 2**16),
    at_once=st.integers(1, 60),
)
def test_of_kept_classes_all_others_count_as_one(count, temperature, seed, at_once) -> None:
    """Value and gradient are those of the divergence of k + 1 classes: at most that of all, and equal at k = V."""
    torch.manual_seed(seed)
    own = torch.randn(5, CLASSES, dtype=torch.float64, requires_grad=True)
    theirs = 3 * torch.randn(5, CLASSES, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soft_labels, "_LOGITS_AT_ONCE", at_once)
        kept = likeliest(torch.nn.Identity(), theirs, count, (2.0, temperature), CLASSES)
        log_probs = kept.log_probs / temperature - kept.scales[:, 1:]
        found = from_kept(torch.nn.Identity(), own, kept.classes, log_probs, Spread(temperature, CLASSES))
    (ours,) = torch.autograd.grad(found, [own])

    chosen = torch.zeros_like(own, dtype=torch.bool).scatter(1, kept.classes, True)
    p, q = ((logits / temperature).softmax(-1) for logits in (theirs, own))
    terms = torch.where(chosen, p * (p / q).log(), 0.0).sum()
    if count < CLASSES:
        rest_p, rest_q = (torch.where(chosen, 0.0, each).sum(1) for each in (p, q))
        terms = terms + (rest_p * (rest_p / rest_q).log()).sum()
    wanted = temperature**2 * terms
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours, torch.autograd.grad(wanted, [own])[0], rtol=1e-6, atol=1e-9)
    whole = temperature**2 * F.kl_div(q.log(), p, reduction="sum")
    assert found.item() <= whole.item() + 1e-9
    if count == CLASSES:
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


def test_the_likeliest_classes_are_kept_with_their_probabilities() -> None:
    _, teacher, _, states = heads()
    kept = likeliest(teacher, states, 7, (1.0,), CLASSES)
    every = teacher(states).log_softmax(-1)
    wanted, classes = every.sort(-1, descending=True)
    assert torch.equal(kept.classes, classes[:, :7])
    torch.testing.assert_close(kept.log_probs, wanted[:, :7])
    torch.testing.assert_close(kept.scales, torch.zeros_like(kept.scales), rtol=0, atol=1e-12)


def test_what_rounding_leaves_of_nothing_teaches_nothing() -> None:
    """In float32 probabilities may add up to a little more than 1: the value and the gradient stay finite."""
    own = torch.zeros(1, 4, requires_grad=True)
    log_probs = torch.tensor([[0.6, 0.4000001]]).log()
    found = from_kept(torch.nn.Identity(), own, torch.tensor([[0, 1]]), log_probs, Spread(1.0, 4))
    found.backward()
    assert torch.isfinite(found) and torch.isfinite(own.grad).all()

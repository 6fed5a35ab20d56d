"""Chunks of logits for the tests of the loss's kernel, and what it must make of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.model.loss.shaping import Shaping


def chunk(
    rows: int, classes: int, dtype: torch.dtype, size: float = 3.0, seed: int = 0, ignored: float = 0.25
) -> tuple[Tensor, Tensor]:
    """Products of random logits of this size, and labels of which a share is ignored."""
    generator = torch.Generator().manual_seed(seed)
    products = torch.randn(rows, classes, generator=generator).mul(size).to(dtype)
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < ignored] = IGNORE_INDEX
    return products, labels


def shaped(products: Tensor, shaping: Shaping) -> Tensor:
    """The logits, in float64."""
    logits = products.double() / shaping.logits_scaling
    return logits if shaping.softcap is None else shaping.softcap * torch.tanh(logits / shaping.softcap)


def assert_equals_float64(
    products: Tensor, labels: Tensor, shaping: Shaping, loss: Tensor, gradient: Tensor, exact: float = 2**-21
) -> None:
    """Loss and gradient are as exact as float32 arithmetic is, element by element.

    An error of `exact` in each step, relative to what it computes, makes one of `exact` times the largest logit, or the
    cap, in the exponents; the gradient is rounded to its own precision at the end.
    """
    inputs = products.detach().double().requires_grad_()
    logits = shaped(inputs, shaping)
    wanted = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    labelled = (labels != IGNORE_INDEX)[:, None]
    log_z = logits.logsumexp(1, keepdim=True)
    drawn = shaping.z_loss_coef * (log_z.square() * labelled).sum()
    smoothing = shaping.label_smoothing
    learned = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=smoothing)
    (wanted_gradient,) = torch.autograd.grad(learned + drawn, inputs)

    largest = 1 + (shaping.softcap or logits.abs().max().item())
    assert loss.dtype == torch.float32 and gradient.dtype == products.dtype
    assert abs(loss.item() - wanted.item()) <= exact * (largest * int(labelled.sum()) + wanted.item())

    kind = torch.finfo(products.dtype)
    tiny = kind.smallest_normal * kind.eps + torch.finfo(torch.float32).smallest_normal  # what float32 may take for 0
    probabilities = logits.softmax(1) * (1 + 2 * shaping.z_loss_coef * log_z.abs()) * largest
    one_hot = torch.zeros_like(logits).scatter_(1, labels[:, None].clamp(min=0), 1.0)
    steepness = 1.0 if shaping.softcap is None else 1 + inputs.detach().abs() / shaping.logits_scaling / shaping.softcap
    allowed = (
        wanted_gradient.abs() * (kind.eps + exact * steepness)
        + (probabilities + one_hot + smoothing / logits.shape[1]) * exact / shaping.logits_scaling
        + tiny
    )
    excess = ((gradient.double() - wanted_gradient).abs() - allowed * labelled).max().item()
    assert excess <= 0, f"gradients are off by {excess} more than rounding explains"

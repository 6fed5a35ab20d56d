"""Cross-entropy straight from the hidden states, without ever holding all logits.

    hidden [N, C], weight [V, C]  --chunk of rows-->  logits [n, V]  -->  loss, d hidden [n, C], d weight += [V, C]

A chunk's logits give its loss and both its gradients at once, so the backward pass has nothing left to compute: three
matrix products in all, as many as with all logits in memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
"""The label of a token that has no successor to predict."""

_CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Logits held at once: on a CPU what stays in its last-level cache, on a GPU what fills it (about 0.8 GB)."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Sum over the labelled rows of -log softmax(hidden @ weight.T)[label], in nats.

    Logits are computed in the inputs' precision and reduced in float32; the weight's gradient is accumulated over
    the chunks in float32.

    Args:
        hidden: [N, C].
        weight: [V, C].
        labels: [N] class indices; `IGNORE_INDEX` rows count neither in the loss nor in a gradient.

    Returns:
        A scalar, float32 (float64 for float64 inputs).
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, labels)  # type: ignore[no-untyped-call]
    return _loss_and_gradients(hidden, weight, labels, gradients=False)[0]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        loss, *gradients = _loss_and_gradients(hidden, weight, labels, gradients=True)
        ctx.save_for_backward(*gradients)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (grad_hidden * grad).to(ctx.dtype), (grad_weight * grad).to(ctx.dtype), None


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, labels: Tensor, gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    loss = torch.zeros((), dtype=wide, device=hidden.device)
    grad_hidden = torch.empty_like(hidden) if gradients else None
    grad_weight = torch.zeros_like(weight, dtype=wide) if gradients else None
    rows = max(1, _CHUNK_ELEMENTS.get(hidden.device.type, 1 << 24) // weight.shape[0])
    for start in range(0, hidden.shape[0], rows):
        chunk = slice(start, start + rows)
        labelled = (labels[chunk] != IGNORE_INDEX)[:, None]
        target = labels[chunk, None].clamp(min=0)

        logits = F.linear(hidden[chunk], weight)
        logits_at_target = logits.gather(1, target).to(wide)
        largest = logits.amax(1, keepdim=True).to(wide)
        exponentials = logits.to(wide).sub_(largest).exp_()
        normaliser = exponentials.sum(1, keepdim=True)
        loss += (normaliser.log() + largest - logits_at_target).mul_(labelled).sum()

        if grad_hidden is not None and grad_weight is not None:  # d loss / d logits = softmax - one-hot
            probabilities = exponentials.mul_(labelled / normaliser)
            grad_logits = probabilities.scatter_add_(1, target, -labelled.to(wide)).to(hidden.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[chunk])
            grad_weight += grad_logits.T @ hidden[chunk]
    return loss, grad_hidden, grad_weight

"""Cross-entropy straight from the hidden states, without ever holding all logits.

    hidden [N, C], weight [V, C]  --chunk of rows-->  logits [n, V]  -->  loss, d hidden [n, C], d weight += [V, C]

A chunk's logits give its loss and both its gradients at once, so the backward pass has nothing left to compute: three
matrix products in all, as many as with all logits in memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigtrain.model.wide_products import product_dtype

IGNORE_INDEX = -100
"""The label of a token that has no successor to predict."""

_CHUNK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Logits held at once, 10 bytes each: on a CPU what stays in its last-level cache, on a GPU what fills it (0.7 GB)."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    logits_scaling: float = 1.0,
    softcap: float | None = None,
    z_loss_coef: float = 0.0,
) -> Tensor:
    """Sum over the labelled rows of -log softmax(logits)[label], in nats; logits = hidden @ weight.T at its plainest.

    The products are computed in the inputs' precision (on a CPU without instructions for it in float32), everything
    between them in float32; the weight's gradient is
    accumulated over the chunks in float32.

    The value is the cross-entropy and nothing else, so that losses compare between runs; the *gradient* is that of
    cross-entropy + z_loss_coef * sum of log(Z)^2, with Z the softmax's normaliser (PaLM, Chowdhery et al., 2022,
    section 5): it keeps the logits from drifting.

    Args:
        hidden: [N, C].
        weight: [V, C].
        labels: [N] class indices; `IGNORE_INDEX` rows count neither in the loss nor in a gradient.
        logits_scaling: the logits are divided by it.
        softcap: then, logits = softcap * tanh(logits / softcap) (Gemma 2, section 2). None: as they are.
        z_loss_coef: weight of log(Z)^2 in the gradient.

    Returns:
        A scalar, float32 (float64 for float64 inputs).
    """
    extras = _Extras(logits_scaling, softcap, z_loss_coef)
    dtype = product_dtype(hidden.dtype, hidden.device)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, labels, extras)  # type: ignore[no-untyped-call]
    return _loss_and_gradients(hidden, weight, labels, extras, gradients=False)[0]


class _Extras(NamedTuple):
    logits_scaling: float
    softcap: float | None
    z_loss_coef: float


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, extras: _Extras) -> Tensor:
        loss, *gradients = _loss_and_gradients(hidden, weight, labels, extras, gradients=True)
        ctx.save_for_backward(*gradients)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (grad_hidden * grad).to(ctx.dtype), (grad_weight * grad).to(ctx.dtype), None, None


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, labels: Tensor, extras: _Extras, gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    loss = torch.zeros((), dtype=wide, device=hidden.device)
    grad_hidden = torch.empty_like(hidden) if gradients else None
    grad_weight = torch.zeros_like(weight, dtype=wide) if gradients else None
    rows = _chunk_rows(hidden, weight)
    workspace = _Workspace.allocate(rows, weight, wide)
    for start in range(0, hidden.shape[0], rows):
        chunk = slice(start, start + rows)
        products, *space = (buffer[: labels[chunk].shape[0]] for buffer in workspace)
        torch.mm(hidden[chunk], weight.T, out=products)
        loss += _softmax_cross_entropy(products, labels[chunk], extras, *space)
        if grad_hidden is not None and grad_weight is not None:
            torch.mm(products, weight, out=grad_hidden[chunk])
            grad_weight += products.T @ hidden[chunk]
    return loss, grad_hidden, grad_weight


def _chunk_rows(hidden: Tensor, weight: Tensor) -> int:
    rows = _CHUNK_ELEMENTS.get(hidden.device.type, 1 << 24) // weight.shape[0]
    if hidden.device.type == "cpu":  # with fewer, adding up the weight's gradient outweighs the products
        rows = max(rows, weight.shape[1] // 2)
    return min(max(rows, 1), max(hidden.shape[0], 1))


class _Workspace(NamedTuple):
    """Memory for a chunk, [n, V] each, used by all of them: fresh memory costs a CPU as much as the softmax does."""

    products: Tensor
    logits: Tensor
    probabilities: Tensor

    @staticmethod
    def allocate(rows: int, weight: Tensor, wide: torch.dtype) -> _Workspace:
        return _Workspace(*(weight.new_empty(rows, weight.shape[0], dtype=t) for t in (weight.dtype, wide, wide)))


def _softmax_cross_entropy(
    products: Tensor, labels: Tensor, extras: _Extras, logits: Tensor, probabilities: Tensor
) -> Tensor:
    """The loss of a chunk. The products, [n, V], are overwritten with the loss's gradient with respect to them."""
    scaling, softcap, z_loss_coef = extras
    labelled = (labels != IGNORE_INDEX).to(logits.dtype)[:, None]
    target = labels[:, None].clamp(min=0)
    logits.copy_(products)
    if scaling != 1.0:
        logits.div_(scaling)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)

    # PyTorch's softmax reads once and writes once; log(Z) follows from the largest logit and its probability.
    torch.softmax(logits, 1, out=probabilities)
    log_z = logits.amax(1, keepdim=True) - probabilities.amax(1, keepdim=True).log()
    loss = (log_z - logits.gather(1, target)).mul_(labelled).sum()

    # d loss / d logits = softmax - one-hot, and d log(Z)^2 / d logits = 2 log(Z) softmax
    gradient = probabilities.mul_(labelled if z_loss_coef == 0 else labelled * (1 + 2 * z_loss_coef * log_z))
    gradient.scatter_add_(1, target, -labelled)
    if softcap is not None:  # d tanh = 1 - tanh^2
        gradient.addcmul_(gradient, logits.div_(softcap).square_(), value=-1)
    if scaling != 1.0:
        gradient.div_(scaling)
    products.copy_(gradient)
    return loss

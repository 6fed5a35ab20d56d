"""Cross-entropy straight from the hidden states, without ever holding all logits.

    hidden [N, C], weight [V, C]  --chunk of rows-->  logits [n, V]  -->  loss, d hidden [n, C], d weight += [V, C]

A chunk's logits give its loss and both its gradients at once, so the backward pass has nothing left to compute: three
matrix products in all, as many as with all logits in memory. What lies between the products is `loss_softmax`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigtrain.model.cpu.cpu_products import product_dtype, weight_gradient
from bigtrain.model.loss.loss_softmax import softmax_for
from bigtrain.model.loss.shaping import Shaping
from bigtrain.model.shapes.loss_memory import chunk_rows

__all__ = ["linear_cross_entropy"]


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    logits_scaling: float = 1.0,
    softcap: float | None = None,
    z_loss_coef: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Sum over the labelled rows of -log softmax(logits)[label], in nats; logits = hidden @ weight.T at its plainest.

    The products are computed in the inputs' precision (on a CPU without instructions for it in float32), everything
    between them in float32; the weight's gradient is accumulated over the chunks in float32.

    The value is the cross-entropy and nothing else, so that losses compare between runs; the *gradient* is that of
    cross-entropy + z_loss_coef * sum of log(Z)^2, with Z the softmax's normaliser (PaLM, Chowdhery et al., 2022,
    section 5): it keeps the logits from drifting. With label_smoothing e the gradient is that of the cross-entropy with
    1 - e of a label's weight on the label and e spread evenly over all classes (Szegedy et al., 2016, section 7).

    Args:
        hidden: [N, C].
        weight: [V, C].
        labels: [N] class indices; `IGNORE_INDEX` rows count neither in the loss nor in a gradient.
        bias: [V], added to the logits before anything else.
        logits_scaling: the logits are divided by it.
        softcap: then, logits = softcap * tanh(logits / softcap) (Gemma 2, section 2). None: as they are.
        z_loss_coef: weight of log(Z)^2 in the gradient.
        label_smoothing: e.

    Returns:
        A scalar, float32 (float64 for float64 inputs).
    """
    shaping = Shaping(logits_scaling, softcap, z_loss_coef, label_smoothing)
    dtype = product_dtype(hidden.dtype, hidden.device)
    hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, bias, labels, shaping)  # type: ignore[no-untyped-call]
    return _loss_and_gradients(hidden, weight, bias, labels, shaping, Learns(False, False, False))[0]


class Learns(NamedTuple):
    """Which of them need a gradient: a frozen head has none."""

    hidden: bool
    weight: bool
    bias: bool


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, shaping: Shaping
    ) -> Tensor:
        learns = Learns(*ctx.needs_input_grad[:3])
        loss, *gradients = _loss_and_gradients(hidden, weight, bias, labels, shaping, learns)
        ctx.save_for_backward(*gradients)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (each if each is None else (each * grad).to(ctx.dtype) for each in ctx.saved_tensors)
        return *gradients, None, None


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, shaping: Shaping, learns: Learns
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    loss = torch.zeros((), dtype=wide, device=hidden.device)
    grad_hidden = torch.empty_like(hidden) if learns.hidden else None
    grad_weight = torch.zeros_like(weight, dtype=wide) if learns.weight else None
    grad_bias = torch.zeros_like(bias, dtype=wide) if learns.bias and bias is not None else None
    softmax, copied_bytes = softmax_for(weight, shaping)
    classes, width = weight.shape
    rows = chunk_rows(hidden.device.type, len(hidden), classes, width, weight.itemsize + copied_bytes)
    memory = weight.new_empty(rows, weight.shape[0])  # of all chunks
    for start in range(0, hidden.shape[0], rows):
        chunk = slice(start, start + rows)
        products = memory[: labels[chunk].shape[0]]
        if bias is None:
            torch.mm(hidden[chunk], weight.T, out=products)
        else:
            torch.addmm(bias, hidden[chunk], weight.T, out=products)
        loss += softmax(products, labels[chunk], shaping, any(learns))
        if grad_hidden is not None:
            torch.mm(products, weight, out=grad_hidden[chunk])
        if grad_weight is not None:
            grad_weight += weight_gradient(products, hidden[chunk])
        if grad_bias is not None:
            grad_bias += products.sum(0, dtype=wide)
    return loss, grad_hidden, grad_weight, grad_bias

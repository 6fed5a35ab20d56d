"""The softmax of a chunk of logits in one Triton kernel: its loss, and in place its gradient.

Each row is one program. It reads the row once for the largest logit and the sum of exponentials (online softmax:
Milakov and Gimelshein, 2018) and once more to write the gradient over it; everything between is float32 in registers.
So a logit moves through memory three times, in its own precision, and no second matrix of logits exists.

Importing this needs `triton`, which PyTorch's builds for CUDA bring along; `loss_softmax` says when it is taken.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigtrain.base import IGNORE_INDEX
from bigtrain.model.loss.shaping import Shaping

BLOCK = 4096
"""Logits of a row held in registers at once: two loads of 16 bytes, in bf16, for each of a program's 256 threads."""
WARPS = 8


def softmax_in_one_kernel(products: Tensor, labels: Tensor, shaping: Shaping, gradients: bool) -> Tensor:
    """See `bigtrain.model.loss.loss_softmax.Softmax`; a contiguous chunk of bf16, fp16 or float32 products.

    What is added up in which order follows from the chunk's shape alone, so the result is the same each time. A label
    that is no class makes the loss NaN: a GPU cannot raise.
    """
    rows, classes = products.shape
    assert products.is_contiguous() and labels.shape == (rows,)
    losses = torch.empty(rows, dtype=torch.float32, device=products.device)
    with torch.cuda.device_of(products):  # type: ignore[no-untyped-call]
        softmax_of_a_row[(rows,)](
            products,
            labels.contiguous(),
            losses,
            1 / shaping.logits_scaling,
            shaping.softcap or 1.0,
            shaping.z_loss_coef,
            shaping.label_smoothing,
            CLASSES=classes,
            IGNORE_INDEX=IGNORE_INDEX,
            CAPPED=shaping.softcap is not None,
            GRADIENTS=gradients,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return losses.sum()


@triton.jit(do_not_specialize_on_alignment=["labels"])  # type: ignore[untyped-decorator]
def softmax_of_a_row(  # type: ignore[no-untyped-def]
    products,  # pointer to [n, CLASSES]
    labels,  # pointer to [n]
    losses,  # pointer to [n]
    scale,
    softcap,
    z_loss_coef,
    label_smoothing,
    CLASSES: tl.constexpr,
    IGNORE_INDEX: tl.constexpr,
    CAPPED: tl.constexpr,
    GRADIENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The loss of a row, and its gradient in the place of its products."""
    row = tl.program_id(0).to(tl.int64)  # times CLASSES it may pass 2^31
    products += row * CLASSES
    columns = tl.arange(0, BLOCK)
    label = tl.load(labels + row)
    if label == IGNORE_INDEX:
        tl.store(losses + row, 0.0)
        if GRADIENTS:
            zeros = tl.zeros([BLOCK], products.dtype.element_ty)
            for start in range(0, CLASSES, BLOCK):
                tl.store(products + start + columns, zeros, mask=start + columns < CLASSES)
        return

    # Read here and not where it is needed: the reductions between make every thread wait until all have read, and only
    # then is the gradient written over it.
    is_class = (label >= 0) & (label < CLASSES)
    raw_target = tl.load(products + label, mask=is_class, other=float("nan"))
    target, _target_slope = scaled_and_capped(raw_target, scale, softcap, CAPPED)

    # A finite beginning, so that a lane without columns adds exp(-inf) and not NaN. Each lane adds up its own columns.
    largest = -3.0e38
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, CLASSES, BLOCK):
        there = start + columns < CLASSES
        raw = tl.load(products + start + columns, mask=there, other=0.0)
        logits, slope = scaled_and_capped(raw, scale, softcap, CAPPED)
        logits = tl.where(there, logits, float("-inf"))
        before, largest = largest, tl.maximum(largest, tl.max(logits, 0))
        sums = sums * tl.exp(before - largest) + tl.exp(logits - largest)
    total = tl.sum(sums, 0)

    tl.store(losses + row, (largest - target) + tl.log(total))  # the difference first: both may be large

    if GRADIENTS:
        # d loss / d logits = softmax - one-hot, and d log(Z)^2 / d logits = 2 log(Z) softmax
        factor = (1.0 + 2.0 * z_loss_coef * (largest + tl.log(total))) / total
        for start in range(0, CLASSES, BLOCK):
            there = start + columns < CLASSES
            raw = tl.load(products + start + columns, mask=there, other=0.0)
            logits, slope = scaled_and_capped(raw, scale, softcap, CAPPED)
            gradient = tl.exp(logits - largest) * factor
            gradient -= label_smoothing / CLASSES
            gradient = tl.where(start + columns == label, gradient - (1.0 - label_smoothing), gradient) * slope
            tl.store(products + start + columns, gradient.to(raw.dtype), mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def scaled_and_capped(raw, scale, softcap, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logits in float32 from what the matrix product gave, and their derivative by it."""
    logits = raw.to(tl.float32) * scale
    slope = scale
    if CAPPED:  # tanh(x) and 1 - tanh(x)^2 from exp(-2 |x|), which does not overflow; exact to 2^-23 of the cap
        exponential = tl.exp(tl.abs(logits) * (-2.0 / softcap))
        inverse = 1.0 / (1.0 + exponential)
        magnitude = softcap * (1.0 - exponential) * inverse
        logits = tl.where(logits < 0, -magnitude, magnitude)
        slope = scale * 4.0 * exponential * inverse * inverse
    return logits, slope

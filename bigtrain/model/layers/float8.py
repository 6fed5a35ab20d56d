"""Matrix products of linear layers in 8-bit floating point, each tensor with a scale of its own.

Forward, activations and weights are e4m3 (3 bits of mantissa); backward, gradients are e5m2 (2 bits, more range), as in
Micikevicius et al. (2022), "FP8 formats for deep learning". A tensor is divided by its scale, so that its largest
element becomes the largest number of the format, whenever it is used: nothing overflows, and there is no state to
save. Products accumulate in float32 and come out in the type of the activations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings

MULTIPLE = 16
"""What the hardware wants every inner dimension of a product to be a multiple of."""


class Float8Linear(nn.Linear):
    """nn.Linear with its three matrix products in 8 bits; weights, bias and results keep their types."""

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        product: Tensor = _Float8Product.apply(input.flatten(0, -2), self.weight)  # type: ignore[no-untyped-call]
        result = product.view(*input.shape[:-1], self.out_features)
        return result if self.bias is None else result + self.bias


class _Float8Product(torch.autograd.Function):
    """x [M, K] and W [N, K] to x W^T [M, N].

    The weight is saved as it is and quantised again in the backward pass: ZeRO 3 has taken it away in between, and a
    copy in 8 bits would bring back what it saves.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _multiply(_quantise(x, torch.float8_e4m3fn), _quantise(weight, torch.float8_e4m3fn), x.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_input, of_weight = ctx.needs_input_grad
        tokens = len(grad)
        if missing := -tokens % MULTIPLE:  # the gradient of the weight sums over them
            grad = F.pad(grad, (0, 0, 0, missing))
        grad8, grad_scale = _quantise(grad, torch.float8_e5m2)
        grad_x = grad_weight = None
        if of_input:
            weight8, weight_scale = _quantise(weight, torch.float8_e4m3fn)
            grad_x = _multiply((grad8, grad_scale), (weight8.t().contiguous(), weight_scale), weight.dtype)[:tokens]
        if of_weight:
            x8, x_scale = _quantise(F.pad(x, (0, 0, 0, missing)), torch.float8_e4m3fn)
            grad_weight = _multiply((grad8.t().contiguous(), grad_scale), (x8.t().contiguous(), x_scale), weight.dtype)
        return grad_x, grad_weight


def _quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x / scale in 8 bits, and the scale, float32. What is not finite makes everything so: no step is applied then."""
    largest = torch.finfo(dtype).max
    scale = x.abs().amax().float().clamp(min=1e-12) / largest
    return (x.float() / scale).clamp(-largest, largest).to(dtype).contiguous(), scale


def _multiply(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype, fast: bool = False) -> Tensor:
    """a [M, K] and b [N, K], each with its scale, to a b^T [M, N]; `fast` rounds while it accumulates (Hopper)."""
    (a8, a_scale), (b8, b_scale) = a, b
    return torch._scaled_mm(a8, b8.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast)


def require_float8(settings: ModelSettings) -> None:
    """Make sure that this shape can be computed so.

    Raises:
        BigtrainError: a width of the model is no multiple of 16.
    """
    widths = {
        "model.hidden_size": settings.hidden_size,
        "model.intermediate_size": settings.intermediate_size,
        "model.num_attention_heads * model.head_dim": settings.num_attention_heads * settings.head_width,
        "model.num_key_value_heads * model.head_dim": settings.key_value_heads * settings.head_width,
    }
    for name, width in widths.items():
        if width % MULTIPLE:
            raise BigtrainError(
                f"engine.float8 multiplies matrices whose dimensions are multiples of {MULTIPLE}; {name} is none",
                found=width,
                wanted=f"a multiple, for example {-(-width // MULTIPLE) * MULTIPLE}",
                fix="change the shape of the model, or set engine.float8 to false",
            ).on_all_ranks()

"""Products of 16-bit floats in float32, for CPUs that have no instructions for them.

Without AVX512-BF16 or AMX, oneDNN converts each number whenever it multiplies with it: a product in bfloat16 takes four
times as long as one in float32. Here both matrices are widened once, multiplied in float32, and the result is rounded
once. It is what such instructions compute, too, but for the order of the sum.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions for products of this type; of others than x86 we assume that it does."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    if dtype == torch.float16:
        return torch.cpu._is_amx_fp16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


WIDENED = frozenset(dtype for dtype in (torch.bfloat16, torch.float16) if not _multiplies(dtype))
"""What a CPU had better multiply in float32. It follows from the processor alone and not from a measurement, so that a
run repeats itself bit for bit."""


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type in which matrices of this one are multiplied on this device."""
    return torch.float32 if dtype in WIDENED and device.type == "cpu" else dtype


class WideLinear(nn.Linear):
    """nn.Linear with its three matrix products in float32; weights, bias and results keep their types."""

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        if product_dtype(input.dtype, input.device) == input.dtype:
            return F.linear(input, self.weight, self.bias)
        product: Tensor = _Product.apply(input.flatten(0, -2), self.weight)  # type: ignore[no-untyped-call]
        result = product.view(*input.shape[:-1], self.out_features)
        return result if self.bias is None else result + self.bias


class _Product(torch.autograd.Function):
    """x [M, K] and W [N, K] to x W^T [M, N].

    The weight is saved as it is and widened again in the backward pass: ZeRO 3 has taken it away in between.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return wide_mm(x, weight.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return wide_mm(grad, weight), wide_mm(grad.t(), x)


@torch.library.custom_op("bigtrain::wide_mm", mutates_args=())
def wide_mm(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] times b [K, N], computed in float32, in the type of a. An operator, so that recomputation knows it."""
    return torch.mm(a.float(), b.float()).to(a.dtype)


@wide_mm.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])

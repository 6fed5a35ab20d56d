"""Matrix products of 16-bit floats as CPUs compute them fastest.

Without instructions for them (AVX512-BF16, AMX), oneDNN converts each number whenever it multiplies with it: a product
in bfloat16 takes four times as long as one in float32. There both matrices are widened once, multiplied in float32, and
the result is rounded once. It is what such instructions compute, too, but for the order of the sum.

With them, oneDNN multiplies a matrix that lies transposed in memory at half the speed, which a weight's gradient always
has. There it is transposed first, by a kernel of ours.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.model.cpu.cpu_kernels import address, kernels, obstacle


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


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, K] and W [N, K], of one type, to x W^T [M, N]."""
    if product_dtype(x.dtype, x.device) != x.dtype:
        return wide_mm(x, weight.t())
    return torch.mm(x, weight.t())


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradients of `product` [M, N] and W [N, K] to that of x [M, K]."""
    if product_dtype(grad.dtype, grad.device) != grad.dtype:
        return wide_mm(grad, weight)
    return torch.mm(grad, weight)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The gradients of `product` [M, N] and x [M, K] to that of W [N, K]."""
    if product_dtype(grad.dtype, grad.device) != grad.dtype:
        return wide_mm(grad.t(), x)
    if grad.device.type != "cpu" or grad.dtype != torch.bfloat16 or obstacle():
        return torch.mm(grad.t(), x)
    if grad.shape[1] <= x.shape[1]:
        return torch.mm(transposed(grad), x)
    return transposed(torch.mm(transposed(x), grad))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., K] to input W^T + bias [..., N], for W [N, K]: `torch.nn.functional.linear`, whose three matrix products on
    a CPU, in 16 bits, are those of this module."""
    narrow = product_dtype(input.dtype, input.device) == input.dtype
    if narrow and (input.device.type != "cpu" or input.dtype != torch.bfloat16 or not torch.is_grad_enabled()):
        return F.linear(input, weight, bias)
    output: Tensor = _WideProduct.apply(input.flatten(0, -2), weight)  # type: ignore[no-untyped-call]
    output = output.view(*input.shape[:-1], weight.shape[0])
    return output if bias is None else output + bias


class CpuLinear(nn.Linear):
    """nn.Linear that computes by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        return linear(input, self.weight, self.bias)


class _WideProduct(torch.autograd.Function):
    """`product` and its gradients.

    The weight is saved as it is, and where it is widened, widened again in the backward pass: ZeRO 3 has taken it away
    in between. A frozen weight has no gradient, and the input is not kept for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_input, of_weight = ctx.needs_input_grad
        return (
            input_gradient(grad, weight) if of_input else None,
            weight_gradient(grad, x) if of_weight else None,
        )


@torch.library.custom_op("bigtrain::wide_mm", mutates_args=())
def wide_mm(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] times b [K, N], computed in float32, in the type of a. An operator, so that recomputation knows it."""
    return torch.mm(a.float(), b.float()).to(a.dtype)


@wide_mm.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


@torch.library.custom_op("bigtrain::transposed", mutates_args=())
def transposed(x: Tensor) -> Tensor:
    """x [M, N] in bfloat16 as [N, M], contiguous: five times as fast as PyTorch's copy. It wants `kernels`."""
    x = x.contiguous()
    rows, columns = x.shape
    result = x.new_empty(columns, rows)
    kernels().transpose(address(x), ctypes.c_int64(rows), ctypes.c_int64(columns), address(result))
    return result


@transposed.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], x.shape[0])

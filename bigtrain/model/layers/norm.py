"""Normalisation of the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.config import ModelSettings

_CACHED_ELEMENTS = 1 << 17
"""What a core's own cache holds in float32, twice or three times."""


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale (Zhang and Sennrich, 2019, equation 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; the statistics are float32 for any lower precision."""
        if x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _CpuRMSNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _CpuRMSNorm(torch.autograd.Function):
    """On a CPU PyTorch's norm is a chain of float32 tensors as large as the input. Here the float32 copies are
    of a few rows at a time, which stay in the cache: three times as fast.

    With r = 1 / rms(x), n = x r and u = grad * weight over a row of C:  dx = r (u - n mean(u n)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_()
        r = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        y = torch.empty_like(x)
        wide_weight = weight.to(wide)
        for y_rows, x_rows, r_rows in _in_rows(y, x, r):
            y_rows.copy_((x_rows * r_rows).mul_(wide_weight))
        ctx.save_for_backward(x, weight, r)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        wide_weight = weight.to(r.dtype)
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(wide_weight)
        for target, grad_rows, x_rows, r_rows in _in_rows(grad_x, grad, x, r):
            normed = x_rows * r_rows
            grad_normed = grad_rows * normed
            grad_weight += grad_normed.sum(0)
            mean = (grad_normed @ wide_weight).div_(x.shape[-1])[:, None]
            torch.mul(grad_rows, wide_weight, out=grad_normed)
            target.copy_(grad_normed.addcmul_(normed, mean, value=-1).mul_(r_rows))
        return grad_x, grad_weight.to(weight.dtype), None


def _in_rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows at a time of tensors [..., C], the first of them to be written to, the others in float32 at least."""
    rows = max(1, _CACHED_ELEMENTS // tensors[0].shape[-1])
    target, *sources = (tensor.reshape(-1, tensor.shape[-1]).split(rows) for tensor in tensors)  # type: ignore[no-untyped-call]
    for first, *others in zip(target, *sources, strict=True):
        yield first, *(x.to(torch.promote_types(x.dtype, torch.float32)) for x in others)


class LayerNorm(nn.LayerNorm):
    """Mean and variance norm with a learned scale and shift (Ba, Kiros and Hinton, 2016)."""

    def __init__(self, width: int, eps: float, *, bias: bool = True) -> None:
        super().__init__(width, eps=eps, bias=bias)


class ZeroCenteredRMSNorm(RMSNorm):
    """RMSNorm whose scale is 1 + weight, multiplied before the result is rounded, as Gemma has it."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension, in float32 for any lower precision."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.weight.shape, 1.0 + self.weight.to(wide), self.eps).to(x.dtype)


NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "rms_norm": RMSNorm,
    "rms_norm_zero_centered": ZeroCenteredRMSNorm,
    "layer_norm": LayerNorm,
}


def norm_layer(settings: ModelSettings, width: int | None = None) -> nn.Module:
    """A norm as this model has them, over the last dimension. Default: of width hidden_size."""
    width = settings.hidden_size if width is None else width
    if settings.norm == "layer_norm" and not settings.norm_bias:
        return LayerNorm(width, settings.norm_eps, bias=False)
    return NORMS[settings.norm](width, settings.norm_eps)

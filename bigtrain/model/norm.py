"""Normalisation of the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale (Zhang and Sennrich, 2019, equation 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; the statistics are float32 for any lower precision."""
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return _CpuRMSNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _CpuRMSNorm(torch.autograd.Function):
    """On a CPU PyTorch's forward is fused but its backward is a chain of float32 tensors, twice as slow as this.

    With r = 1 / rms(x) and u = grad * weight over a row of C:  dx = u r - x (r^3 / C) sum(u x).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, r = torch.ops.aten._fused_rms_norm(x, weight.shape, weight, eps)
        ctx.save_for_backward(x, weight, r)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        u = grad * weight
        projection = (u * x).sum(-1, keepdim=True, dtype=r.dtype).mul_(r.pow(3) / x.shape[-1])
        grad_x = (u * r).addcmul_(x, projection, value=-1).to(x.dtype)
        grad_weight = (grad * x * r).flatten(0, -2).sum(0).to(weight.dtype)
        return grad_x, grad_weight, None


class LayerNorm(nn.LayerNorm):
    """Mean and variance norm with a learned scale and shift (Ba, Kiros and Hinton, 2016)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)


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

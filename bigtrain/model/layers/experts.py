"""A mixture of experts in place of the feed-forward layer: none is full, no token is dropped.

    tokens [N, C] --sorted by expert--> [N k, C] --gate, up, down of each expert--> [N k, C] --summed--> [N, C]

Sorting makes the work of an expert one matrix product, and a grouped product does those of all experts at once. A
hidden vector is multiplied by its router weight before `down`: the sum after it then needs nothing for its gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.config import ModelSettings
from bigtrain.model.layers.activations import ACTIVATIONS
from bigtrain.model.layers.router import Router, RouterReport
from bigtrain.model.sequence_parallel import SequenceParallel


class MixtureOfExperts(nn.Module):
    """sum over the chosen experts of weight * down(act(gate(x)) * up(x))."""

    def __init__(self, settings: ModelSettings, sequence_parallel: SequenceParallel | None) -> None:
        super().__init__()
        self.router = Router(settings, sequence_parallel)
        self.experts = Experts(settings)

    def forward(self, x: Tensor, labelled: Tensor | None = None) -> tuple[Tensor, RouterReport | None]:
        """Map [B, T, C] to [B, T, C]; with `labelled`, [B, T] bool, also the router's report on those tokens."""
        experts, weights, report = self.router(x, labelled)
        return self.experts(x.flatten(0, -2), experts.flatten(0, -2), weights.flatten(0, -2)).view(x.shape), report


class Experts(nn.Module):
    """E gated feed-forward layers, their matrices on top of each other."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        count, width, inner = settings.num_experts, settings.hidden_size, settings.expert_width
        self.activation = ACTIVATIONS[settings.hidden_act]
        self.gate_proj = nn.Parameter(torch.empty(count, inner, width))
        self.up_proj = nn.Parameter(torch.empty(count, inner, width))
        self.down_proj = nn.Parameter(torch.empty(count, width, inner))

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """x [N, C] through the chosen experts [N, k] with their weights [N, k], to [N, C]."""
        by_expert, order = experts.flatten().sort(stable=True)
        numbers = torch.arange(len(order), device=order.device)
        places = torch.empty_like(order).scatter_(0, order, numbers).view_as(experts)
        every = torch.arange(len(self.gate_proj), device=order.device)
        ends = torch.searchsorted(by_expert, every, right=True, out_int32=True)
        sorted_x: Tensor = _Spread.apply(x, order, places)  # type: ignore[no-untyped-call]
        gate, up = grouped_linear(sorted_x, self.gate_proj, ends), grouped_linear(sorted_x, self.up_proj, ends)
        inner = self.activation(gate) * up * weights.flatten()[order, None]
        outputs = grouped_linear(inner, self.down_proj, ends)
        summed: Tensor = _Gather.apply(outputs, order, places)  # type: ignore[no-untyped-call]
        return summed


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The linear layer of each group on its own rows.

    Args:
        x: [M, K], the rows of a group together, in the order of groups.
        weight: [E, N, K].
        ends: [E] int32, where each group ends; it begins where the one before it ends.

    Returns:
        [M, N].
    """
    product: Tensor = _GroupedLinear.apply(x, weight, ends)  # type: ignore[no-untyped-call]
    return product


class _GroupedLinear(torch.autograd.Function):
    """The weight is saved as it is, and no view of it: ZeRO 3 takes it away in between and brings it back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, ends)
        return _product(x, weight, ends, transposed=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, ends = ctx.saved_tensors
        grad = grad.contiguous()
        return _product(grad, weight, ends, transposed=False), _product_over_rows(grad, x, ends), None


# Operators of our own: compilation takes them as they are, where it would know PyTorch's in bfloat16 alone and would
# break at the loop, and recomputation keeps their results whichever way they were computed.


@torch.library.custom_op("bigtrain::grouped_product", mutates_args=())
def _product(x: Tensor, weight: Tensor, ends: Tensor, transposed: bool) -> Tensor:
    """x [M, K] and weight [E, K, N], or [E, N, K] to be transposed, to [M, N]: each group of rows times its matrix."""
    weight = weight.transpose(1, 2) if transposed else weight
    if _has_kernel(x, weight):
        return F.grouped_mm(x, weight, offs=ends)
    return torch.cat([rows @ matrix for rows, matrix in zip(_groups(x, ends), weight, strict=True)])


@torch.library.custom_op("bigtrain::grouped_product_over_rows", mutates_args=())
def _product_over_rows(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """a [M, N] and b [M, K] to [E, N, K]: for each group the product over its rows."""
    if _has_kernel(a, b):
        return F.grouped_mm(a.t(), b, offs=ends)
    return torch.stack([left.t() @ right for left, right in zip(_groups(a, ends), _groups(b, ends), strict=True)])


@_product.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor, transposed: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1 if transposed else 2])


@_product_over_rows.register_fake
def _(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    return a.new_empty(ends.shape[0], a.shape[1], b.shape[1])


def _has_kernel(a: Tensor, b: Tensor) -> bool:
    """Whether PyTorch's grouped product takes matrices like these: 16 or 32 bits, in rows of whole 16 bytes."""
    known = a.dtype in (torch.bfloat16, torch.float16, torch.float32)
    return known and all(width * a.element_size() % 16 == 0 for width in (a.shape[-1], *b.shape[-2:]))


def _groups(x: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
    return torch.split(x, ends.diff(prepend=ends.new_zeros(1)).tolist())


class _Spread(torch.autograd.Function):
    """[N, C] to [N k, C], each token's row to the places [N, k] of its choices; backward is `_Gather`'s forward.

    PyTorch's own gradient of indexing adds up in whatever order comes on a GPU; this one has an order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x[order // places.shape[1]]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grad[places].sum(dim=1), None, None


class _Gather(torch.autograd.Function):
    """[N k, C] to [N, C], the sum of a token's k rows; backward is `_Spread`'s forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        ctx.top_k = places.shape[1]
        return x[places].sum(dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return grad[order // ctx.top_k], None, None

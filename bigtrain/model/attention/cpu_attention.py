"""FlashAttention's algorithm in C++, for bfloat16 on CPUs that have instructions for it: see `cpu_kernels`.

Documents are taken one by one, as they lie in memory; nothing is padded, copied or computed beyond their ends but for
what fills up the last block of one. Scores and all sums are float32, weights are rounded to bfloat16 before they are
multiplied with values.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from bigtrain.model.attention.attention_rule import AttentionRule
from bigtrain.model.cpu.cpu_kernels import Call, address, kernels
from bigtrain.model.layers.dropout import scale_of, threshold_of


@torch.library.custom_op("bigtrain::cpu_attention", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, drop_keys: Tensor | None, scale: float,
    window: int | None, two_sided: bool, drop_rate: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output [N, H, D]; and for the backward pass the binary logarithm of each softmax's sum, [N, H]."""
    query, key, value = (x.contiguous() for x in (query, key, value))
    output, normaliser = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32)
    call, _held = _call(query, key, cu_seqlens, drop_keys, scale, window, two_sided, drop_rate)
    had_memory = kernels().attention_forward(call, *map(address, (query, key, value, output, normaliser)))
    _require(had_memory)
    return output, normaliser


@torch.library.custom_op("bigtrain::cpu_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, drop_keys: Tensor | None,
    output: Tensor, normaliser: Tensor, scale: float, window: int | None, two_sided: bool, drop_rate: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value."""
    grad, query, key, value = (x.contiguous() for x in (grad, query, key, value))
    grads = tuple(torch.empty_like(x) for x in (query, key, value))
    call, _held = _call(query, key, cu_seqlens, drop_keys, scale, window, two_sided, drop_rate)
    had_memory = kernels().attention_backward(
        call, *map(address, (grad, query, key, value, output, normaliser, *grads))
    )
    _require(had_memory)
    return grads[0], grads[1], grads[2]


def _call(
    query: Tensor, key: Tensor, cu_seqlens: Tensor, drop_keys: Tensor | None, scale: float, window: int | None,
    two_sided: bool, drop_rate: float,
) -> tuple[Any, list[Tensor]]:  # fmt: skip
    """The arguments of the kernel, and the tensors that they point to."""
    tokens, heads, width = query.shape
    seen = tokens if window is None else min(window, tokens)
    ahead = seen - 1 if two_sided else 0
    held = [cu_seqlens.to(torch.int64)] + ([] if drop_keys is None else [drop_keys.contiguous()])
    boundaries, *keys = held
    call = Call(
        len(boundaries) - 1, heads, key.shape[1], width, boundaries.data_ptr(), scale, seen, ahead,
        keys[0].data_ptr() if keys else None, threshold_of(drop_rate), scale_of(drop_rate),
    )  # fmt: skip
    return ctypes.byref(call), held


def _require(had_memory: bool) -> None:
    if not had_memory:
        raise MemoryError("no memory for a document's blocks of attention")


@_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, drop_keys: Tensor | None, scale: float,
    window: int | None, two_sided: bool, drop_rate: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    return output, query.new_empty(query.shape[:2], dtype=torch.float32)


@_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, drop_keys: Tensor | None,
    output: Tensor, normaliser: Tensor, scale: float, window: int | None, two_sided: bool, drop_rate: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grads = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    return next(grads), next(grads), next(grads)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], *output)
    ctx.rule = inputs[5:]


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad, *ctx.saved_tensors, *ctx.rule), None, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def cpu_attention(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, rule: AttentionRule) -> Tensor:
    """Attention inside each document.

    Args:
        query: [N, H, D] bfloat16, D a multiple of 32 and at most 256.
        key: [N, K, D], H a multiple of K.
        value: [N, K, D].
        cu_seqlens: [documents + 1] integers from 0 to N.
        rule: what is seen; without soft cap and distance bias.

    Returns:
        [N, H, D].
    """
    drop_keys, drop_rate = rule.dropout or (None, 0.0)
    return _forward(query, key, value, cu_seqlens, drop_keys, rule.scale, rule.window, rule.two_sided, drop_rate)[0]

"""PyTorch's FlexAttention over packed documents: a kernel compiled for the rule, on CUDA.

It can do all that a rule says; FlashAttention has neither a soft cap nor a bias that takes a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from bigtrain.model.attention.attention_rule import AttentionRule


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it compiles its own kernel
def packed_flex_attention(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, rule: AttentionRule) -> Tensor:
    """Attention inside each document.

    Args:
        query: [N, H, D]; fewer where the rule says at which tokens they stand.
        key: [N, K, D], H a multiple of K; of two sequences [M, K, D].
        value: like the key.
        cu_seqlens: [documents + 1] integers from 0 to N.
        rule: what is seen, and how much of it.

    Returns:
        [N, H, D].
    """
    attend = _kernel(query.is_cuda)
    heads_first = (x.transpose(0, 1)[None] for x in (query, key, value))
    output: Tensor = attend(
        *heads_first,
        score_mod=_score(rule),
        block_mask=_block_mask(cu_seqlens, len(query), len(key), rule),
        scale=rule.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[0].transpose(0, 1)


@cache
def _kernel(compiled: bool) -> Callable[..., Any]:
    attend: Any = flex_attention  # overloaded by what is returned
    return torch.compile(attend) if compiled else attend


def _score(rule: AttentionRule) -> Callable[..., Tensor] | None:
    cap, bias, zero, relative, stands = (
        rule.softcap,
        rule.distance_bias,
        rule.zero_distance,
        rule.relative,
        rule.queries,
    )
    if cap is None and bias is None and relative is None:
        return None
    by_distance = None
    if relative is not None:
        by_distance = torch.einsum("nhd,lhd->hnl", relative.query, relative.key) * rule.scale

    def score(s: Tensor, _batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = (query if stands is None else stands[query]) - key
        # Pairs that the mask hides are computed, too; their distance must only be one that there is.
        if by_distance is not None:
            last = by_distance.shape[2] - 1
            s = s + by_distance[head, query, (distance + last // 2).clamp(0, last)]
        if cap is not None:
            s = cap * torch.tanh(s / cap)
        if bias is not None:
            s = s + bias[head, (distance + zero).clamp(0, bias.shape[1] - 1)]
        return s

    return score


_masks: list[tuple[tuple[Tensor | None, ...], tuple[Any, ...], BlockMask]] = []
"""The documents attended to last, the latest in front: the layers of a model ask for the same ones, one after the
other, with one or two windows, and a second time in the backward pass where they are recomputed."""


def _block_mask(cu_seqlens: Tensor, queries: int, keys: int, rule: AttentionRule) -> BlockMask:
    key_cu_seqlens = cu_seqlens if rule.keys is None else rule.keys.cu_seqlens
    window, two_sided, order, stands = rule.window, rule.two_sided, rule.order, rule.queries
    tensors = (cu_seqlens, key_cu_seqlens, stands, *(order or (None, None)))
    # Tensors of inference mode count no versions; nothing writes to these.
    versions = (None if tensor is None or tensor.is_inference() else tensor._version for tensor in tensors)
    wanted = (window, two_sided, *versions)
    for made_from, made_for, mask in _masks:
        if made_for == wanted and all(one is other for one, other in zip(made_from, tensors, strict=True)):
            return mask
    places = torch.arange(queries, device=cu_seqlens.device) if stands is None else stands
    document = torch.bucketize(places, cu_seqlens[1:], right=True)
    key_document = document
    if rule.keys is not None or stands is not None:
        key_document = torch.bucketize(torch.arange(keys, device=cu_seqlens.device), key_cu_seqlens[1:], right=True)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = document[query] == key_document[key]
        if order is not None:
            seen = seen & (order.of_keys[key] <= order.of_queries[query])
        distance = (query if stands is None else stands[query]) - key
        if not two_sided:
            seen = seen & (distance >= 0)
        elif window is not None:
            seen = seen & (-distance < window)
        return seen if window is None else seen & (distance < window)

    mask = create_block_mask(visible, None, None, queries, keys, device=cu_seqlens.device, _compile=cu_seqlens.is_cuda)
    _masks.insert(0, (tensors, wanted, mask))
    del _masks[4:]
    return mask

"""FlashAttention's algorithm written in batched matrix products, for CPUs.

PyTorch's own flash kernel multiplies bfloat16 matrices three to six times slower than `torch.bmm` does on CPUs without
AMX. So the algorithm (Dao et al., 2022) is spelled out here: a block of queries at a time against the keys before its
end, scores recomputed in the backward pass, memory linear in the sequence length.

Documents are batched by length, rounded up (by a quarter at most) and padded: a document's padding lies behind its
last token, where a causal mask hides it.

Shapes: n documents of padded length L in a batch, K key/value heads, G query heads to each, s queries in a block,
e keys before the block's end. A batch of matrices is [n K, ...]; a block of scores [n K, G s, e].
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BLOCK = 128
"""Queries in a block."""


class _Batch(NamedTuple):
    """Documents attended to together."""

    tokens: Tensor
    """[n, L] where each document's tokens lie; padding repeats its last token."""
    valid: Tensor | None
    """[n, L] False at padding; None where there is none."""


@torch.library.custom_op("bigtrain::blockwise_attention", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [N, H, D]; and for the backward pass each softmax's shift and sum, [N, H]."""
    wide = torch.promote_types(query.dtype, torch.float32)
    output = torch.empty_like(query)
    shift = query.new_empty(query.shape[:2])
    normaliser = query.new_empty(query.shape[:2], dtype=wide)
    for batch in _batches(tuple(cu_seqlens.tolist())):
        length = batch.tokens.shape[1]
        keys, values = _by_head(key[batch.tokens]), _by_head(value[batch.tokens])
        for start in range(0, length, _BLOCK):
            rows, end = batch.tokens[:, start : start + _BLOCK], min(start + _BLOCK, length)
            queries = _by_group(query[rows], keys.shape[0])
            seen = keys[:, :end].transpose(1, 2)
            scores = _mask(torch.bmm(queries, seen), start)
            largest = scores.amax(-1, keepdim=True).mul_(scale)
            if query.dtype == wide:
                exponentials = scores.mul_(scale).sub_(largest).exp_()
            else:
                # Computed again with the maximum subtracted before rounding: what matters in a softmax is then
                # exact to the precision of its result, however large the scores are.
                torch.baddbmm(largest, queries, seen, beta=-1, alpha=scale, out=scores)
                exponentials = _mask(scores, start).exp_()
            total = exponentials.sum(-1, keepdim=True, dtype=wide)
            result = torch.bmm(exponentials, values[:, :end]).div_(total)
            valid = None if batch.valid is None else batch.valid[:, start:end]
            for target, block in ((output, result), (shift, largest), (normaliser, total)):
                _put(target, rows, valid, block)
    return output, shift, normaliser


@torch.library.custom_op("bigtrain::blockwise_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, output: Tensor, shift: Tensor,
    normaliser: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value (Dao et al., 2022, appendix B.4)."""
    wide = normaliser.dtype
    # With P = E / total, dividing the gradient by the total once leaves E in every product below.
    grad = (grad / normaliser[..., None]).to(query.dtype)
    delta = (grad * output).sum(-1, dtype=wide).to(query.dtype)
    grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, value))
    for batch in _batches(tuple(cu_seqlens.tolist())):
        length = batch.tokens.shape[1]
        keys, values = _by_head(key[batch.tokens]), _by_head(value[batch.tokens])
        grad_keys, grad_values = (torch.zeros_like(keys, dtype=wide) for _ in range(2))
        for start in range(0, length, _BLOCK):
            rows, end = batch.tokens[:, start : start + _BLOCK], min(start + _BLOCK, length)
            valid = None if batch.valid is None else batch.valid[:, start:end]
            queries, shifts, grads, deltas = (
                _by_group(x[rows] if valid is None else x[rows].mul_(valid[..., None, None]), keys.shape[0])
                for x in (query, shift[..., None], grad, delta[..., None])
            )
            seen_keys, seen_values = keys[:, :end], values[:, :end]
            scores = torch.baddbmm(shifts, queries, seen_keys.transpose(1, 2), beta=-1, alpha=scale)
            exponentials = _mask(scores, start).exp_()
            grad_values[:, :end] += torch.bmm(exponentials.transpose(1, 2), grads)
            grad_scores = torch.baddbmm(deltas, grads, seen_values.transpose(1, 2), beta=-1).mul_(exponentials)
            grad_keys[:, :end] += torch.bmm(grad_scores.transpose(1, 2), queries)
            _put(grad_query, rows, valid, torch.bmm(grad_scores, seen_keys).mul_(scale))
        _put(grad_key, batch.tokens, batch.valid, grad_keys.mul_(scale))
        _put(grad_value, batch.tokens, batch.valid, grad_values)
    return grad_query, grad_key, grad_value


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(query.dtype, torch.float32)
    return torch.empty_like(query), query.new_empty(query.shape[:2]), query.new_empty(query.shape[:2], dtype=wide)


@_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, output: Tensor, shift: Tensor,
    normaliser: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.scale = inputs[4]


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad, *ctx.saved_tensors, ctx.scale), None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def blockwise_attention(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """Causal attention inside each document.

    Args:
        query: [N, H, D].
        key: [N, K, D], H a multiple of K.
        value: [N, K, D].
        cu_seqlens: [documents + 1] integers from 0 to N.
        scale: of the scores.

    Returns:
        [N, H, D].
    """
    return _forward(query, key, value, cu_seqlens, scale)[0]


@lru_cache(maxsize=2)  # the layers of a model ask for the same documents one after the other
def _batches(boundaries: tuple[int, ...]) -> list[_Batch]:
    starts_of: dict[int, list[int]] = defaultdict(list)
    lengths_of: dict[int, list[int]] = defaultdict(list)
    for start, end in pairwise(boundaries):
        padded = _padded(end - start)
        starts_of[padded].append(start)
        lengths_of[padded].append(end - start)
    batches = []
    for padded, starts in starts_of.items():
        length = torch.tensor(lengths_of[padded])[:, None]
        position = torch.arange(padded)
        valid = position < length
        tokens = torch.tensor(starts)[:, None] + torch.minimum(position, length - 1)
        batches.append(_Batch(tokens, None if bool(valid.all()) else valid))
    return batches


def _padded(length: int) -> int:
    """Round up to one of four steps between two powers of two, or to a multiple of 16 below 64."""
    step = max(16, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step


def _by_head(x: Tensor) -> Tensor:
    """[n, L, K, D] to [n K, L, D]."""
    return x.transpose(1, 2).flatten(0, 1)


def _by_group(x: Tensor, matrices: int) -> Tensor:
    """[n, s, H, D] to [n K, G s, D]: the query heads that share a key head are rows of one matrix."""
    return x.transpose(1, 2).reshape(matrices, -1, x.shape[-1])


def _put(target: Tensor, tokens: Tensor, valid: Tensor | None, block: Tensor) -> None:
    """Write [n K, G s, D], the inverse of `_by_group`, to the tokens' places in target [N, H, (D)]."""
    n, s = tokens.shape
    rows = block.view(n, target.shape[1], s, -1).transpose(1, 2).to(target.dtype)
    if valid is not None:
        tokens, rows = tokens[valid], rows[valid]
    target[tokens] = rows.view(*tokens.shape, *target.shape[1:])


def _mask(scores: Tensor, start: int) -> Tensor:
    """Hide, in place, the keys behind each query: scores [n K, G s, start + s], the last s columns a triangle."""
    s = scores.shape[-1] - start
    future = torch.full((s, s), float("-inf"), dtype=scores.dtype, device=scores.device).triu_(1)
    scores.view(scores.shape[0], -1, s, scores.shape[-1])[..., start:] += future
    return scores

"""Causal attention inside packed documents, by several kernels with one meaning.

Queries are [N, H, D], keys and values [N, K, D] with H a multiple of K, over the N tokens of a micro-batch laid end to
end; `cu_seqlens` [documents + 1] says where documents begin. A token sees its own document up to itself, nothing else.

    varlen     FlashAttention over all documents in one call: CUDA, bf16 or fp16
    blockwise  FlashAttention's algorithm in batched matrix products: the fastest on a CPU, any precision
    sdpa       PyTorch's scaled_dot_product_attention, document by document: any device
    reference  the definition, with the full score matrix: what the others are tested against
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from bigtrain.config.errors import BigtrainError
from bigtrain.model.attention_rule import AttentionRule, attention_by_definition
from bigtrain.model.blockwise_attention import blockwise_attention

AttentionBackend = Callable[[Tensor, Tensor, Tensor, Tensor, int, AttentionRule], Tensor]
"""(query, key, value, cu_seqlens, max_seqlen, rule) -> [N, H, D]"""

# torch 2.11 takes grouped heads without being told; from 2.12 on it wants the flag.
_CAUSAL: dict[str, Any] = {"window_size": (-1, 0)}
if "enable_gqa" in inspect.signature(varlen_attn).parameters:
    _CAUSAL["enable_gqa"] = True


def varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, rule: AttentionRule
) -> Tensor:
    """PyTorch's FlashAttention for sequences of various lengths."""
    output = varlen_attn(query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=rule.scale, **_CAUSAL)
    assert isinstance(output, Tensor)  # it is a tuple only where auxiliary results are asked for
    return output


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a loop over documents, whose number varies
def sdpa(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, rule: AttentionRule) -> Tensor:
    """PyTorch's scaled_dot_product_attention for each document; documents of one length that follow each other are
    one call, so rows without boundaries inside are one batch."""
    lengths = cu_seqlens.diff().tolist()
    outputs, start, first = [], 0, 0
    while first < len(lengths):
        length, last = lengths[first], first
        while last < len(lengths) and lengths[last] == length:
            last += 1
        run = slice(start, start + length * (last - first))
        q, k, v = (x[run].reshape(last - first, length, -1, x.shape[-1]).transpose(1, 2) for x in (query, key, value))
        output = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=rule.scale, enable_gqa=True)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
        start, first = run.stop, last
    return torch.cat(outputs)


def blockwise(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, rule: AttentionRule
) -> Tensor:
    """See `bigtrain.model.blockwise_attention`."""
    return blockwise_attention(query, key, value, cu_seqlens, rule.scale)


def reference(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, rule: AttentionRule
) -> Tensor:
    """`attention_by_definition` over all N x N pairs of tokens."""
    tokens = torch.arange(query.shape[0], device=query.device)
    document = torch.bucketize(tokens, cu_seqlens[1:], right=True)
    positions = (tokens - cu_seqlens[document])[None]
    same = document[:, None] == document
    return attention_by_definition(query[None], key[None], value[None], positions, positions, rule, same)[0]


BACKENDS: dict[str, AttentionBackend] = {
    "varlen": varlen,
    "blockwise": blockwise,
    "sdpa": sdpa,
    "reference": reference,
}


def attention_backend(implementation: str, query: Tensor, rule: AttentionRule) -> AttentionBackend:
    """The back-end to use for queries like these.

    Args:
        implementation: a key of `BACKENDS`, or `auto` for the fastest that can run.
        query: [N, H, D]; its device, type and head width decide.
        rule: what the back-end must be able to do.

    Raises:
        BigtrainError: the back-end asked for cannot run on these.
    """
    obstacle = _varlen_obstacle(query)
    if implementation != "reference" and (rule.window or rule.softcap or rule.distance_bias is not None):
        raise BigtrainError(
            f"attention back-end {implementation!r} knows no window, softcap or distance bias yet",
            found=str(rule),
            wanted="the plain causal rule",
            fix="set engine.attn_implementation to reference",
        )
    if implementation == "auto":
        implementation = "blockwise" if query.device.type == "cpu" else "sdpa" if obstacle else "varlen"
    if implementation == "varlen" and obstacle:
        raise BigtrainError(
            "attention back-end 'varlen' cannot run here",
            found=f"{query.dtype} queries of head width {query.shape[-1]} on {query.device.type}",
            wanted=obstacle,
            fix="set engine.attn_implementation to auto or sdpa",
        )
    return BACKENDS[implementation]


def _varlen_obstacle(query: Tensor) -> str | None:
    """What PyTorch's FlashAttention would need and does not find; None when it can run."""
    if query.device.type != "cuda":
        return "a CUDA device"
    if query.dtype not in (torch.bfloat16, torch.float16):
        return "engine.precision bf16"
    if query.shape[-1] % 8 or query.shape[-1] > 256:
        return "a head width that is a multiple of 8, at most 256"
    if torch.cuda.get_device_capability(query.device)[0] < 8:
        return "a GPU of compute capability 8.0 or later"
    return None

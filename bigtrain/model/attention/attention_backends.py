"""Attention inside packed documents, by several kernels with one meaning.

Queries are [N, H, D], keys and values [N, K, D] with H a multiple of K, over the N tokens of a micro-batch laid end to
end; `cu_seqlens` [documents + 1] says where documents begin. A token sees its own document up to itself, or on both
sides, as far and with such scores as the layer's `AttentionRule` says, and nothing else. In cross-attention the rule
says where the documents of the keys begin, which are then [M, K, D] of another sequence.

    varlen     FlashAttention over all documents in one call: CUDA, bf16 or fp16; windows, no soft cap, bias or dropout
    flex       FlexAttention, compiled for the rule: CUDA, any rule without dropout
    cpp        FlashAttention in C++, compiled at first use: x86 CPUs with bf16 instructions, bf16; no soft cap or bias,
               one sequence
    blockwise  FlashAttention's algorithm in batched matrix products: any CPU, any precision, any rule
    sdpa       PyTorch's scaled_dot_product_attention, document by document: any device, no soft cap; with dropout the
               same in matrix products, which hold a document's scores, for any rule
    reference  the definition, with the full score matrix: what the others are tested against
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import activate_flash_attention_impl
from torch.nn.attention.varlen import varlen_attn

from bigtrain.base import BigtrainError
from bigtrain.model.attention.attention_rule import (
    AttentionRule,
    KeyBoundaries,
    attention_by_definition,
    bias_at,
    require_whole_documents,
)
from bigtrain.model.attention.blockwise_attention import blockwise_attention
from bigtrain.model.attention.cpu_attention import cpu_attention
from bigtrain.model.attention.flex_attention import packed_flex_attention
from bigtrain.model.cpu.cpu_kernels import obstacle as obstacle_to_cpu_kernels
from bigtrain.model.cpu.cpu_products import product_dtype
from bigtrain.model.layers.activations import soft_capped
from bigtrain.model.layers.dropout import dropped

AttentionBackend = Callable[[Tensor, Tensor, Tensor, Tensor, int, AttentionRule], Tensor]
"""(query, key, value, cu_seqlens, max_seqlen, rule) -> [N, H, D]"""

# torch 2.11 takes grouped heads by default; torch 2.12 and later need the flag.
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, rule: AttentionRule
) -> Tensor:
    """PyTorch's FlashAttention for sequences of various lengths."""
    before = -1 if rule.window is None else rule.window - 1  # it counts tokens beside the token itself
    keys = rule.keys or KeyBoundaries(cu_seqlens, max_seqlen)
    output = varlen_attn(
        query, key, value, cu_seqlens, keys.cu_seqlens, max_seqlen, keys.max_seqlen,
        scale=rule.scale, window_size=(before, before if rule.two_sided else 0), **_GROUPED,
    )  # fmt: skip
    assert isinstance(output, Tensor)  # it is a tuple only where auxiliary results are asked for
    return output


def flex(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, rule: AttentionRule) -> Tensor:
    """See `bigtrain.model.attention.flex_attention`."""
    _require_bias_for(max_seqlen, rule)
    return packed_flex_attention(query, key, value, cu_seqlens, rule)


def cpp(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, rule: AttentionRule) -> Tensor:
    """See `bigtrain.model.attention.cpu_attention`."""
    return cpu_attention(query, key, value, cu_seqlens, rule)


def blockwise(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, rule: AttentionRule
) -> Tensor:
    """See `bigtrain.model.attention.blockwise_attention`."""
    _require_bias_for(max_seqlen, rule)
    dtype = product_dtype(query.dtype, query.device)
    output = blockwise_attention(query.to(dtype), key.to(dtype), value.to(dtype), cu_seqlens, rule)
    return output.to(query.dtype)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a loop over documents, whose number varies
def sdpa(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, rule: AttentionRule) -> Tensor:
    """PyTorch's scaled_dot_product_attention for each document; documents of one length that follow each other are
    one call, so rows without boundaries inside are one batch."""
    _require_bias_for(max_seqlen, rule)
    if rule.keys is not None:
        return _sdpa_of_two(query, key, value, cu_seqlens, rule.keys.cu_seqlens, rule)
    lengths = cu_seqlens.diff().tolist()
    outputs, start, first = [], 0, 0
    while first < len(lengths):
        length, last = lengths[first], first
        while last < len(lengths) and lengths[last] == length:
            last += 1
        run = slice(start, start + length * (last - first))
        q, k, v = (x[run].reshape(last - first, length, -1, x.shape[-1]).transpose(1, 2) for x in (query, key, value))
        if (drop := rule.dropout) is not None:
            keys = drop.keys[run].view(last - first, length, -1).transpose(1, 2)
            output = _dropped_attention(q, k, v, _mask(length, rule, query, whole=True), rule, keys)
        else:
            mask = _mask(length, rule, query)
            causal = mask is None and not rule.two_sided
            output = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, scale=rule.scale, enable_gqa=True
            )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
        start, first = run.stop, last
    return torch.cat(outputs)


def _sdpa_of_two(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, key_cu_seqlens: Tensor, rule: AttentionRule
) -> Tensor:
    """The same between two sequences: documents with as many queries and keys as those before are one call."""
    shapes = list(zip(cu_seqlens.diff().tolist(), key_cu_seqlens.diff().tolist(), strict=True))
    outputs, start, key_start = [], 0, 0
    for (length, keys), run in groupby(shapes):
        documents = len(list(run))
        own = slice(start, start + documents * length)
        others = slice(key_start, key_start + documents * keys)
        start, key_start = own.stop, others.stop
        if not (length and keys):  # a query that sees nothing gets zero
            outputs.append(query[own] * 0)
            continue
        q = query[own].reshape(documents, length, -1, query.shape[-1]).transpose(1, 2)
        k, v = (x[others].reshape(documents, keys, -1, x.shape[-1]).transpose(1, 2) for x in (key, value))
        if (drop := rule.dropout) is not None:
            drop_keys = drop.keys[own].view(documents, length, -1).transpose(1, 2)
            output = _dropped_attention(q, k, v, None, rule, drop_keys)
        else:
            output = F.scaled_dot_product_attention(q, k, v, scale=rule.scale, enable_gqa=True)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _dropped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: AttentionRule, drop_keys: Tensor
) -> Tensor:
    """What `scaled_dot_product_attention` computes, with a soft cap and weights dropped by keys.

    Args:
        query: [n, H, L, D].
        key, value: [n, K, S, D], H a multiple of K.
        mask: [L, S] visible pairs, or their bias [H, L, S].
        rule: has scale, soft cap and rate.
        drop_keys: [n, H, L].
    """
    assert rule.dropout is not None
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1) if group > 1 else x for x in (key, value))
    scores = (query @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32)) * rule.scale
    scores = soft_capped(scores, rule.softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = dropped(scores.softmax(-1).to(query.dtype), drop_keys, rule.dropout.rate)
    return weights @ value


def _mask(length: int, rule: AttentionRule, query: Tensor, *, whole: bool = False) -> Tensor | None:
    """What sdpa takes beside `is_causal`: nothing, or visible pairs [L, L], or their bias [H, L, L]; a `whole` mask has
    what `is_causal` says, too."""
    window = length if rule.window is None else rule.window
    if window >= length and rule.distance_bias is None and (rule.two_sided or not whole):
        return None
    tokens = torch.arange(length, device=query.device)
    distance = tokens[:, None] - tokens
    visible = distance.abs() < window if rule.two_sided else (distance >= 0) & (distance < window)
    if rule.distance_bias is None:
        return visible
    places = distance.masked_fill(~visible, 0) + rule.zero_distance
    bias = bias_at(rule.distance_bias.to(query.dtype), places).movedim(-1, 0)
    return bias.masked_fill(~visible, float("-inf"))


def reference(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, rule: AttentionRule
) -> Tensor:
    """`attention_by_definition` over all pairs of a query and a key."""
    _require_bias_for(max_seqlen, rule)
    document, positions = _places(len(query), cu_seqlens)
    key_document, key_positions = _places(len(key), cu_seqlens if rule.keys is None else rule.keys.cu_seqlens)
    same = document[:, None] == key_document
    return attention_by_definition(
        query[None], key[None], value[None], positions[None], key_positions[None], rule, same
    )[0]


def _places(length: int, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token [N] the number of its document, and its position in it."""
    tokens = torch.arange(length, device=cu_seqlens.device)
    document = torch.bucketize(tokens, cu_seqlens[1:], right=True)
    return document, tokens - cu_seqlens[document]


def _require_bias_for(max_seqlen: int, rule: AttentionRule) -> None:
    if rule.distance_bias is None:
        return
    seen = max_seqlen if rule.window is None else min(max_seqlen, rule.window)
    if rule.bias_reach < seen:
        raise BigtrainError(
            "the distance bias of attention does not reach as far as tokens see",
            found=f"a bias for {rule.bias_reach} distances",
            wanted=f"one for the {seen} tokens that a token may see",
            fix="make the bias for the longest document",
        )


BACKENDS: dict[str, AttentionBackend] = {
    "varlen": varlen,
    "cpp": cpp,
    "blockwise": blockwise,
    "flex": flex,
    "sdpa": sdpa,
    "reference": reference,
}
"""In the order in which `auto` asks them."""


def attention_backend(implementation: str, query: Tensor, rule: AttentionRule) -> AttentionBackend:
    """The back-end to use for queries like these.

    Args:
        implementation: a key of `BACKENDS`, or `auto` for the fastest that can run.
        query: [N, H, D]; its device, type and head width decide.
        rule: what the back-end must be able to do.

    Raises:
        BigtrainError: the back-end asked for cannot run on these.
    """
    require_whole_documents(rule)
    if implementation == "auto":
        implementation = next((name for name in BACKENDS if _obstacle(name, query, rule) is None), "reference")
        if implementation == "varlen":
            _prepare_flash_attention(torch.cuda.get_device_capability(query.device)[0])
    if obstacle := _obstacle(implementation, query, rule):
        able = [name for name in BACKENDS if _obstacle(name, query, rule) is None]
        wishes = [name for name in ("window", "softcap", "distance_bias", "dropout") if getattr(rule, name) is not None]
        raise BigtrainError(
            f"attention back-end {implementation!r} cannot run here",
            found=f"{query.dtype} queries of head width {query.shape[-1]} on {query.device.type}"
            + (f", with {' and '.join(wishes)}" if wishes else "")
            + (", between two sequences" if rule.keys is not None else ", on both sides" if rule.two_sided else ""),
            wanted=obstacle,
            fix=f"set engine.attn_implementation to auto, or to one of {', '.join(able)}",
        )
    return BACKENDS[implementation]


def _obstacle(name: str, query: Tensor, rule: AttentionRule) -> str | None:
    """What this back-end would need and does not find; None when it can run."""
    if name == "cpp" and rule.keys is not None:
        return "queries and keys of one sequence"
    if rule.softcap is not None and (name in ("varlen", "cpp") or (name == "sdpa" and rule.dropout is None)):
        return "a rule without softcap"
    if name in ("varlen", "cpp") and rule.distance_bias is not None:
        return "a rule without distance bias"
    if name in ("varlen", "flex") and rule.dropout is not None:
        return "a rule without dropout: model.attention_dropout 0"
    if name == "blockwise" and query.device.type != "cpu":
        return "a CPU"
    if name == "flex" and query.device.type == "cpu":
        # Its kernel for CPUs has no backward pass.
        return "a CUDA device for training" if torch.is_grad_enabled() else None
    if name == "cpp":
        return _cpp_obstacle(query)
    return _cuda_obstacle(name, query) if name in ("varlen", "flex") else None


def _cpp_obstacle(query: Tensor) -> str | None:
    if query.device.type != "cpu":
        return "a CPU"
    if query.dtype != torch.bfloat16:
        return "engine.precision bf16"
    if query.shape[-1] % 32 or query.shape[-1] > 256:
        return "a head width that is a multiple of 32, at most 256"
    return obstacle_to_cpu_kernels()


def _cuda_obstacle(name: str, query: Tensor) -> str | None:
    if query.device.type != "cuda":
        return "a CUDA device"
    if torch.cuda.get_device_capability(query.device)[0] < 8:
        return "a GPU of compute capability 8.0 or later"
    if name == "flex":
        return "engine.precision bf16, fp16 or fp32" if query.dtype == torch.float64 else None
    if query.dtype not in (torch.bfloat16, torch.float16):
        return "engine.precision bf16 or fp16"
    if query.shape[-1] % 8 or query.shape[-1] > 256:
        return "a head width that is a multiple of 8, at most 256"
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # done when compiling, not compiled
def _prepare_flash_attention(capability: int) -> None:
    _activate_newest_flash_attention(capability)


@cache
def _activate_newest_flash_attention(capability: int) -> None:
    """Let PyTorch call FlashAttention 3 (Hopper) or 4 (Blackwell) where its package is installed, in place of its own
    FlashAttention 2. Installed but broken, it says so once, and FlashAttention 2 stays."""
    name, package = {9: ("FA3", "flash_attn_interface"), 10: ("FA4", "flash_attn")}.get(capability, ("", ""))
    if not name or find_spec(package) is None:
        return
    try:
        activate_flash_attention_impl(name)
    except (ImportError, RuntimeError, OSError, AttributeError, ValueError) as error:
        logging.getLogger(__name__).warning("%s is installed but does not load: %s", name, error)

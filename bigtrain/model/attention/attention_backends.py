"""Attention inside packed documents, by several kernels with one meaning.

Queries are [N, H, D], keys and values [N, K, D] with H a multiple of K, over the N tokens of a micro-batch laid end to
end; `cu_seqlens` [documents + 1] says where documents begin. A token sees its own document up to itself, or on both
sides, or in an order, as far and with such scores as the layer's `AttentionRule` says, and nothing else. In
cross-attention the rule says where the documents of the keys begin, which are then [M, K, D] of another sequence. Where
queries stand at some tokens only, there are fewer of them, and the rule says which.

    varlen     FlashAttention over all documents in one call: CUDA, bf16 or fp16; windows, no soft cap, bias, order or
               dropout
    flex       FlexAttention, compiled for the rule: CUDA, any rule without dropout
    cpp        FlashAttention in C++, compiled at first use: x86 CPUs with bf16 instructions, bf16; no soft cap, bias or
               order, one sequence
    blockwise  FlashAttention's algorithm in batched matrix products: any CPU, any precision, any rule without an order
    sdpa       PyTorch's scaled_dot_product_attention, document by document: any device, no soft cap; with dropout the
               same in matrix products, which hold a document's scores, for nearly any rule
    reference  the definition, with the full score matrix: what the others are tested against
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
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
    OrderRanks,
    RelativeKeys,
    attention_by_definition,
    bias_at,
    require_consistent,
)
from bigtrain.model.attention.blockwise_attention import blockwise_attention
from bigtrain.model.attention.cpu_attention import cpu_attention
from bigtrain.model.attention.flex_attention import packed_flex_attention
from bigtrain.model.cpu.cpu_kernels import obstacle as obstacle_to_cpu_kernels
from bigtrain.model.cpu.cpu_products import product_dtype
from bigtrain.model.layers.activations import soft_capped
from bigtrain.model.layers.dropout import AttentionDropout, dropped

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
    runs = [(shape, len(list(run))) for shape, run in groupby(_document_shapes(cu_seqlens, rule))]
    own, others = ([documents * shape[side] for shape, documents in runs] for side in (0, 1))
    # Split at once, and not slice by slice: the gradient of a slice is as long as the whole.
    parts = zip(
        torch.split(query, own),
        torch.split(key, others),
        torch.split(value, others),
        _split(rule, own, others),
        strict=True,
    )
    outputs = []
    for ((length, keys), documents), (q, k, v, part) in zip(runs, parts, strict=True):
        if not (length and keys):  # a query that sees nothing gets zero
            outputs.append((q[:, :, :1] * 0).expand(-1, -1, value.shape[-1]))
            continue
        mask, seeing = _mask(documents, keys, part, q)
        q = q.reshape(documents, length, -1, q.shape[-1]).transpose(1, 2)
        k, v = (x.reshape(documents, keys, -1, x.shape[-1]).transpose(1, 2) for x in (k, v))
        if (drop := part.dropout) is not None:
            output = _dropped_attention(q, k, v, mask, part, drop.keys.view(documents, length, -1).transpose(1, 2))
        else:
            causal = mask is None and not rule.two_sided
            output = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, scale=rule.scale, enable_gqa=True
            )
        output = output if seeing is None else output * seeing
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _dropped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: AttentionRule, drop_keys: Tensor
) -> Tensor:
    """What `scaled_dot_product_attention` computes, with a soft cap and weights dropped by keys.

    Args:
        query: [n, H, L, D].
        key, value: [n, K, S, D], H a multiple of K.
        mask: visible pairs, or what is added to their scores: what broadcasts to [n, H, L, S].
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


def _document_shapes(cu_seqlens: Tensor, rule: AttentionRule) -> list[tuple[int, int]]:
    """How many queries and keys each document has."""
    lengths = cu_seqlens.diff().tolist()
    if rule.keys is not None:
        return list(zip(lengths, rule.keys.cu_seqlens.diff().tolist(), strict=True))
    if rule.queries is not None:
        bounds = torch.searchsorted(rule.queries, cu_seqlens.to(rule.queries.dtype))
        return list(zip(bounds.diff().tolist(), lengths, strict=True))
    return list(zip(lengths, lengths, strict=True))


def _split(rule: AttentionRule, own: list[int], others: list[int]) -> Iterator[AttentionRule]:
    """The rule for each of several parts of the tokens, with `own` [parts] queries and `others` keys."""
    order, stands, relative = rule.order, rule.queries, rule.relative
    ranks = None if order is None else (torch.split(order.of_queries, own), torch.split(order.of_keys, others))
    places = None if stands is None else torch.split(stands, own)
    products = None if relative is None else torch.split(relative.query, own)
    drop = rule.dropout
    drop_keys = None if drop is None else torch.split(drop.keys, own)
    start = 0
    for number, length in enumerate(others):
        yield replace(
            rule,
            order=None if ranks is None else OrderRanks(ranks[0][number], ranks[1][number]),
            queries=None if places is None else places[number] - start,
            relative=None if relative is None or products is None else RelativeKeys(products[number], relative.key),
            dropout=None if drop is None or drop_keys is None else AttentionDropout(drop_keys[number], drop.rate),
        )
        start += length


def _mask(documents: int, keys: int, rule: AttentionRule, query: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What sdpa takes beside `is_causal` for documents of one shape, each with n queries and m keys; with dropout also
    what `is_causal` says.

    Args:
        documents: how many.
        keys: m.
        rule: what is seen in these documents.
        query: [documents n, H, D].

    Returns:
        Nothing, or visible pairs, or what is added to their scores: what broadcasts to [documents, H, n, m]. And where
        there may be queries that see nothing, 0 for these and 1 for the others, [documents, 1, n, 1].
    """
    window = keys if rule.window is None else rule.window
    biased = rule.distance_bias is not None or rule.relative is not None
    by_itself = rule.two_sided or rule.dropout is None
    if rule.keys is not None or (window >= keys and not biased and rule.order is None and by_itself):
        return None, None
    tokens = torch.arange(keys, device=query.device)
    places = tokens
    if rule.queries is not None:
        starts = keys * torch.arange(documents, device=query.device)
        places = rule.queries.view(documents, -1) - starts[:, None]
    distance = places[..., None] - tokens  # [n, m], or [documents, n, m] where documents differ
    visible = distance.abs() < window if rule.two_sided else (distance >= 0) & (distance < window)
    seeing = None
    if rule.order is not None:
        ranks, key_ranks = (x.view(documents, -1) for x in rule.order)
        visible = visible & (key_ranks[:, None] <= ranks[..., None])
        sees = visible.any(-1, keepdim=True)
        visible, seeing = visible | ~sees, sees[:, None]  # sdpa gives NaN where nothing is seen
    if not biased:
        return visible.unsqueeze(-3), seeing
    seen_distance = distance.masked_fill(~visible, 0)
    mask = torch.zeros((), dtype=query.dtype, device=query.device)
    if rule.distance_bias is not None:
        at = seen_distance + rule.zero_distance
        mask = bias_at(rule.distance_bias.to(query.dtype), at).movedim(-1, -3)
    if (relative := rule.relative) is not None:
        r = relative.query.reshape(documents, -1, *relative.query.shape[1:])
        nearest = relative.key[relative.reach - keys : relative.reach + keys - 1]
        by_distance = torch.einsum("bnhd,lhd->bhnl", r, nearest) * rule.scale
        at = (seen_distance + keys - 1).unsqueeze(-3).expand(*by_distance.shape[:3], keys)
        mask = mask + by_distance.gather(-1, at)
    return mask.masked_fill(~visible.unsqueeze(-3), float("-inf")), seeing


def reference(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, rule: AttentionRule
) -> Tensor:
    """`attention_by_definition` over all pairs of a query and a key."""
    _require_bias_for(max_seqlen, rule)
    key_document, key_positions = _places(len(key), cu_seqlens if rule.keys is None else rule.keys.cu_seqlens)
    document, positions = (key_document, key_positions) if rule.keys is None else _places(len(query), cu_seqlens)
    if rule.queries is not None:
        document, positions = key_document[rule.queries], key_positions[rule.queries]
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
    seen = max_seqlen if rule.window is None else min(max_seqlen, rule.window)
    reaches = {} if rule.distance_bias is None else {"distance bias": (rule.bias_reach, seen)}
    if rule.relative is not None:
        reaches["relative keys"] = rule.relative.reach, max_seqlen
    for name, (reach, wanted) in reaches.items():
        if reach < wanted:
            raise BigtrainError(
                f"the {name} of attention {'does' if name == 'distance bias' else 'do'} not reach as far as tokens see",
                found=f"{reach} distances to one side",
                wanted=f"the {wanted} tokens that a token may see",
                fix="make it for the longest document",
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
    require_consistent(rule)
    if implementation == "auto":
        # flex runs on a CPU without gradients, but not compiled: there sdpa is faster.
        asked = [name for name in BACKENDS if name != "flex" or query.device.type != "cpu"]
        implementation = next((name for name in asked if _obstacle(name, query, rule) is None), "reference")
        if implementation == "varlen":
            _prepare_flash_attention(torch.cuda.get_device_capability(query.device)[0])
    if obstacle := _obstacle(implementation, query, rule):
        able = [name for name in BACKENDS if _obstacle(name, query, rule) is None]
        parts = ("window", "softcap", "distance_bias", "dropout", "order", "queries", "relative")
        wishes = [name for name in parts if getattr(rule, name) is not None]
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
    if rule.softcap is not None and (
        name in ("varlen", "cpp") or (name == "sdpa" and (rule.dropout is None or rule.relative is not None))
    ):
        return "a rule without softcap"
    if name in ("varlen", "cpp") and rule.distance_bias is not None:
        return "a rule without distance bias"
    if name in ("varlen", "cpp", "blockwise"):
        for part in ("order", "queries", "relative"):
            if getattr(rule, part) is not None:
                return f"a rule without {part}"
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

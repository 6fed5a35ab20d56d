"""Which tokens a token sees, and what is added to their scores: the rule of a layer's attention, and its definition.

    score(q, k, d) = cap(scale * q.k) + distance_bias[head, d]      for a key d >= 0 places back, d < window
    score(q, k, d) = cap(scale * q.k) + distance_bias[head, d]      two-sided: for a key |d| < window places away
    score(q, k)    = cap(scale * q.k)                               two sequences: for all keys of the query's document
    score(q, k, d) = cap(scale * (q.k + q'.r[d]))                   relative keys r (Dai et al., 2019, section 3.3)
    output         = drop(softmax(scores)) V                        (Vaswani et al., 2017, equation 1)

An order narrows what a two-sided rule sees: a key is seen where rank(k) <= rank(q). With ranks 0, 1, 2, ... that is the
causal rule; a prefix is tokens of one rank; the two streams of XLNet differ by one in the ranks of their queries.

`attention_by_definition` computes that with the full score matrix, for any positions of queries and keys: every
back-end is tested against it, and so is generation, where a new query meets a cache of keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bigtrain.base import BigtrainError
from bigtrain.model.layers.activations import soft_capped
from bigtrain.model.layers.dropout import AttentionDropout, kept_at, scale_of


class KeyBoundaries(NamedTuple):
    """Where the documents of the keys begin, where keys and queries are of two sequences: cross-attention."""

    cu_seqlens: Tensor
    """[documents + 1] int32: as many documents as the queries have, in the same order."""
    max_seqlen: int
    """The longest of them, or more."""


class OrderRanks(NamedTuple):
    """The order in which tokens come into sight. A query sees the keys of its document whose rank is its own or lower:
    so tokens of equal rank see each other."""

    of_queries: Tensor
    """[n] integers, of the queries laid end to end."""
    of_keys: Tensor
    """[m] integers, likewise."""


class RelativeKeys(NamedTuple):
    """A second product for each score, with a key that stands for the distance (Dai et al., 2019, section 3.3)."""

    query: Tensor
    """[n, H, W], what is multiplied with it for each query; of a width W of its own."""
    key: Tensor
    """[2 L - 1, H, W], the key of each distance d = 1 - L to L - 1, a token after the query first. L is at least the
    number of tokens of the longest document."""

    @property
    def reach(self) -> int:
        """L."""
        return (self.key.shape[0] + 1) // 2


@dataclass(frozen=True)
class AttentionRule:
    """Which tokens a token sees inside its document, and what is added to their scores."""

    scale: float
    """Of q.k; mostly head width ** -0.5."""
    window: int | None = None
    """A token sees those less than this many places away, itself included. Of a causal rule it is the number of tokens
    seen (Hugging Face's sliding_window of a decoder). None: no limit but the document."""
    softcap: float | None = None
    """Scores become cap * tanh(score / cap), before bias and mask (Gemma 2's attn_logit_softcapping)."""
    distance_bias: Tensor | None = None
    """[H, L]: added to the score of a token d places back, d = 0 to L - 1. L is at least the number of tokens that a
    token sees. Two-sided, it is [H, 2 L - 1]: of d = 1 - L to L - 1, a token after the query first. It may require a
    gradient."""
    two_sided: bool = False
    """Whether a token sees those after it, too. ModernBERT's `local_attention` n, which sees n // 2 tokens on each
    side, is a window of n // 2 + 1."""
    keys: KeyBoundaries | None = None
    """Of two sequences: a token of the n-th document of the queries sees all of the n-th of the keys. Such a rule is
    two-sided and has neither window nor distance bias. None: queries and keys are of the same tokens."""
    order: OrderRanks | None = None
    """Of a two-sided rule: the keys that come after a query in this order are not seen. None: all are."""
    queries: Tensor | None = None
    """[n] integers, increasing: at which of the keys' tokens the queries stand. None: at all of them."""
    relative: RelativeKeys | None = None
    """Of a two-sided rule: what is added to q.k by distance, for each query."""
    dropout: AttentionDropout | None = None
    """Which weights are dropped after the softmax. None: none are."""

    @property
    def bias_reach(self) -> int:
        """L of the distance bias: the number of distances to one side, 0 included. 0 without one."""
        if self.distance_bias is None:
            return 0
        return (self.distance_bias.shape[1] + 1) // 2 if self.two_sided else self.distance_bias.shape[1]

    @property
    def zero_distance(self) -> int:
        """The column of the distance bias that belongs to a token itself."""
        return self.bias_reach - 1 if self.two_sided else 0


def attention_by_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    rule: AttentionRule,
    same_document: Tensor | None = None,
) -> Tensor:
    """Attention with the full score matrix, in float32 at least.

    Args:
        query: [B, n, H, D].
        key: [B, m, K, D], H a multiple of K.
        value: [B, m, K, D].
        query_positions: [B, n], each token's place in its document.
        key_positions: [B, m], likewise; -1 in a slot that holds no key.
        rule: what is seen, and how much of it.
        same_document: [B, n, m], or what broadcasts to it; None: each row is one document.

    Returns:
        [B, n, H, D]; zero for a query that sees nothing.
    """
    require_consistent(rule)
    dtype = torch.promote_types(query.dtype, torch.float32)
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    away = distance.abs() if rule.two_sided else distance
    visible = (away >= 0) & (key_positions >= 0)[:, None, :]
    if rule.window is not None:
        visible &= away < rule.window
    if rule.order is not None:
        own, others = rule.order.of_queries.view_as(query_positions), rule.order.of_keys.view_as(key_positions)
        visible &= others[:, None, :] <= own[:, :, None]
    if same_document is not None:
        visible &= same_document
    grouped = query.to(dtype).reshape(*query.shape[:2], key.shape[2], -1, query.shape[-1])
    scores = torch.einsum("bnkgd,bmkd->bkgnm", grouped, key.to(dtype)).flatten(1, 2)
    seen_distance = distance.masked_fill(~visible, 0)  # what is hidden may be any distance away: it counts for nothing
    if (relative := rule.relative) is not None:
        by_distance = torch.einsum(
            "bnhd,lhd->bhnl", relative.query.to(dtype).view(*query.shape[:3], -1), relative.key.to(dtype)
        )
        places = (seen_distance + relative.reach - 1)[:, None].expand(-1, query.shape[2], -1, -1)
        scores = scores + by_distance.gather(-1, places)
    scores = scores * rule.scale
    scores = soft_capped(scores, rule.softcap)
    if rule.distance_bias is not None:
        places = seen_distance + rule.zero_distance
        scores = scores + bias_at(rule.distance_bias.to(dtype), places).movedim(-1, 1)
    hidden = ~visible[:, None]
    # The lowest finite number and not -inf, and zero once more afterwards: a row that sees nothing is no NaN then.
    weights = scores.masked_fill(hidden, torch.finfo(dtype).min).softmax(dim=-1).masked_fill(hidden, 0.0)
    if (drop := rule.dropout) is not None:
        by_head = drop.keys.view(*query.shape[:3]).transpose(1, 2)
        kept = kept_at(by_head[..., None], key_positions[:, None, None].clamp(min=0), drop.rate)
        weights = weights * kept * scale_of(drop.rate)
    weights = weights.view(key.shape[0], key.shape[2], -1, *hidden.shape[2:])
    output = torch.einsum("bkgnm,bmkd->bnkgd", weights, value.to(dtype))
    return output.flatten(2, 3).to(query.dtype)


def require_consistent(rule: AttentionRule) -> None:
    """Refuse a rule whose parts do not go together.

    Raises:
        BigtrainError: a rule of two sequences measures distances, which there are none of between them; or an order or
            relative keys are in a rule that sees one side only.
    """
    measured = {
        "window": rule.window, "distance_bias": rule.distance_bias, "order": rule.order, "queries": rule.queries,
        "relative": rule.relative,
    }  # fmt: skip
    given = [name for name, value in measured.items() if value is not None]
    if rule.keys is not None and (given or not rule.two_sided):
        raise BigtrainError(
            "attention between two sequences knows no distances",
            found=f"two_sided {rule.two_sided}" + (f", with {' and '.join(given)}" if given else ""),
            wanted="a two-sided rule without window, distance bias, order and relative keys",
            fix="leave them out: each token sees all of its document in the other sequence",
        )
    if not rule.two_sided and (rule.order is not None or rule.relative is not None):
        raise BigtrainError(
            "an order and relative keys are parts of a two-sided rule",
            found="a rule that sees one side",
            wanted="two_sided True: the order says which tokens of either side are seen",
            fix="set two_sided; ranks that rise with the positions are the causal rule",
        )


def bias_at(distance_bias: Tensor, places: Tensor) -> Tensor:
    """The bias [..., H] in columns [...]; as an embedding, whose gradient is summed faster than an index's."""
    return F.embedding(places, distance_bias.t())


def alibi_slopes(num_heads: int) -> list[float]:
    """The slope of each head (Press et al., 2022): 2^-8/n, 2^-16/n, ... for n = num_heads a power of two; otherwise
    those of the power below, then every second one of twice that power, as in Hugging Face's models."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * head / power) for head in range(1, power + 1)]
    between = [2.0 ** (-4.0 * head / power) for head in range(1, 2 * (num_heads - power), 2)]
    return slopes + between


def alibi_bias(
    num_heads: int, length: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The distance bias [H, L] of ALiBi: minus the head's slope times the distance."""
    slopes = torch.tensor(alibi_slopes(num_heads), dtype=torch.float64, device=device)
    distances = torch.arange(length, dtype=torch.float64, device=device)
    return (-slopes[:, None] * distances).to(dtype)


def relative_position_buckets(
    length: int, num_buckets: int, max_distance: int, device: torch.device | str | None = None
) -> Tensor:
    """The bucket [L] (int64) of each distance 0 to L - 1 (Raffel et al., 2020, section 2.1; T5's decoder): one for
    each of the shorter distances, the other half spread over the logarithm of the distance up to `max_distance`."""
    distance = torch.arange(length, device=device)
    exact = num_buckets // 2
    # In float32 and in this order, as Hugging Face does: a distance at the edge falls into the same bucket.
    logarithm = torch.log(distance.float() / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    spread = (exact + logarithm.clamp(min=0).to(torch.int64)).clamp(max=num_buckets - 1)
    return torch.where(distance < exact, distance, spread)


def two_sided_position_buckets(length: int, num_buckets: int, max_distance: int) -> Tensor:
    """The bucket [2 L - 1] (int64) of each signed distance 1 - L to L - 1 (Raffel et al., 2020; T5's encoder). The
    first half of the buckets is for the token itself and those before it, the second for those after it."""
    before = relative_position_buckets(length, num_buckets // 2, max_distance)
    return torch.cat((before[1:].flip(0) + num_buckets // 2, before))

"""FlashAttention's algorithm written in batched matrix products, for CPUs.

PyTorch's own flash kernel multiplies bfloat16 matrices three to six times slower than `torch.bmm` does on CPUs without
AMX. So the algorithm (Dao et al., 2022) is spelled out here: memory linear in the sequence length, scores computed
again in the backward pass. The forward pass takes a block of queries at a time against the keys they see; the
backward pass a block of keys against the queries that see them, so that only the queries' gradient is a sum over
blocks. What lies outside the window is never computed.

Documents are batched by length, rounded up (by a quarter at most) and padded: a document's padding comes after its
last token, where a causal mask hides it. Attention that sees both sides hides it by a mask of its own.

Shapes: n documents of padded length L in a batch, K key/value heads, G query heads to each. A batch has K n matrices,
of which c at a time are worked on, so many that their scores stay in the processor's cache:

    keys, values [c, L, D]    queries [c, L G, D]    scores, transposed, of k keys and q queries [c, k, q G]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bigtrain.model.attention.attention_rule import AttentionRule
from bigtrain.model.layers.dropout import kept_in, scale_of

_BLOCK = 128
"""Queries in a block of the forward pass, keys in a block of the backward pass."""
_CACHED = 2**20
"""Scores that a thread works on at a time: two megabytes in bfloat16."""


class _Batch(NamedTuple):
    """Documents attended to together."""

    tokens: Tensor
    """[n, L] where each document's tokens lie; padding repeats its last token."""
    valid: Tensor | None
    """[n, L] False at padding; None where there is none."""

    def arrange(self, x: Tensor, matrices: int) -> Tensor:
        """[N, H, D] to [K n, L G, D]: the query heads that share a key head are rows of one matrix."""
        n, length = self.tokens.shape
        rows = x.view(x.shape[0], -1).index_select(0, self.tokens.view(-1)).view(n, length, matrices // n, -1)
        return rows.permute(2, 0, 1, 3).reshape(matrices, -1, x.shape[-1])

    def put(self, target: Tensor, x: Tensor) -> None:
        """The inverse of `arrange`: write [K n, L G, D] to the tokens' places in target [N, H, D]."""
        n, length = self.tokens.shape
        rows = x.view(-1, n, length, x.numel() // (x.shape[0] * length)).permute(1, 2, 0, 3)
        tokens = self.tokens
        if self.valid is not None:
            tokens, rows = tokens[self.valid], rows[self.valid]
        rows = rows.reshape(tokens.numel(), -1).to(target.dtype)
        target.view(target.shape[0], -1).index_copy_(0, tokens.view(-1), rows)


class _ScoreBlock(NamedTuple):
    """Keys and queries whose scores are computed together, by their positions. Causal: no key comes after the last
    query, and no query before the first key. Two-sided: none by as much as the window."""

    first_key: int
    last_key: int
    first_query: int
    last_query: int

    @property
    def keys(self) -> slice:
        return slice(self.first_key, self.last_key)

    def queries(self, group: int) -> slice:
        """Their rows in a matrix of `group` query heads."""
        return slice(self.first_query * group, self.last_query * group)


def _by_queries(length: int, window: int, ahead: int) -> Iterator[_ScoreBlock]:
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        yield _ScoreBlock(max(0, start - window + 1), min(end + ahead, length), start, end)


def _by_keys(length: int, window: int, ahead: int) -> Iterator[_ScoreBlock]:
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        yield _ScoreBlock(start, end, max(0, start - ahead), min(end - 1 + window, length))


class _Scores:
    """exp(scores - shift) of a rectangle, by an attention rule."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        documents: int,
        length: int,
        scale: float,
        window: int | None,
        softcap: float | None,
        distance_bias: Tensor | None,
        two_sided: bool,
        valid: Tensor | None,
    ) -> None:
        self.dtype = query.dtype
        self.wide = torch.promote_types(query.dtype, torch.float32)
        self.group = query.shape[1] // key.shape[1]
        self.scale, self.softcap = scale, softcap
        self.window = length if window is None else min(window, length)
        self.ahead = self.window - 1 if two_sided else 0
        """How many places after a query the last key is that it sees."""
        self.fused = self.dtype != self.wide and softcap is None and distance_bias is None
        """Whether scores come out of a matrix product with the shift already subtracted: what matters in a softmax is
        then exact to the precision of its result, however large the scores are. Else they are computed wide."""
        self.documents = documents
        self.padding: Tensor | None = None
        """[n, L, 1]: -inf at padding, where it is not hidden because it comes after all queries."""
        if two_sided and valid is not None:
            self.padding = torch.zeros(valid.shape, dtype=self.dtype).masked_fill_(~valid, float("-inf"))[..., None]
            self.unpadded = int(valid.sum(1).min())
        self.bias: Tensor | None = None
        if distance_bias is not None:
            rule = AttentionRule(scale, window, softcap, distance_bias, two_sided)
            seen = min(self.window, rule.bias_reach)
            ahead = seen - 1 if two_sided else 0
            self.bias_columns = slice(rule.zero_distance - ahead, rule.zero_distance + seen)
            """Those of the distances at which a key is seen."""
            beyond = length + _BLOCK - seen
            hidden = (beyond if two_sided else _BLOCK, beyond)
            self.hidden_before, self.zero_distance = hidden[0], hidden[0] + ahead
            bias = F.pad(distance_bias[:, self.bias_columns].to(self.wide), hidden, value=float("-inf"))
            self.bias = bias.view(key.shape[1], self.group, -1)
            self.bias_grad = torch.zeros_like(self.bias)

    def forward(self, keys: Tensor, queries: Tensor, chunk: slice, at: _ScoreBlock) -> tuple[Tensor, Tensor]:
        """The exponentials [c, k, q G] and the shift [c, 1, q G]: the largest score, in the type of the scores."""
        if self.fused:
            scores = torch.bmm(keys, queries.transpose(1, 2))
            shift = _largest(self._hide(scores, chunk, at)).mul_(self.scale)
            return self.backward(keys, queries, chunk, at, shift, scores)[0], shift
        scores, _ = self._wide_scores(keys, queries, chunk, at)
        shift = scores.amax(-2, keepdim=True)
        return scores.sub_(shift).exp_().to(self.dtype), shift

    def backward(
        self, keys: Tensor, queries: Tensor, chunk: slice, at: _ScoreBlock, shift: Tensor, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The exponentials [c, k, q G] and the derivative of the soft cap."""
        if self.fused:
            scores = torch.baddbmm(shift, keys, queries.transpose(1, 2), beta=-1, alpha=self.scale, out=out)
            return self._hide(scores, chunk, at).exp_(), None
        scores, slope = self._wide_scores(keys, queries, chunk, at)
        return scores.sub_(shift).exp_().to(self.dtype), slope

    def _wide_scores(
        self, keys: Tensor, queries: Tensor, chunk: slice, at: _ScoreBlock
    ) -> tuple[Tensor, Tensor | None]:
        scores = torch.bmm(keys.to(self.wide), queries.to(self.wide).transpose(1, 2)).mul_(self.scale)
        slope = None
        if self.softcap is not None:
            scores = scores.div_(self.softcap).tanh_()
            slope = 1 - scores.square()
            scores = scores.mul_(self.softcap)
        if self.bias is None:
            return self._hide(scores, chunk, at), slope
        return self._hide_padding(scores.add_(self._bias_of(chunk, at)), chunk, at), slope

    def _hide(self, scores: Tensor, chunk: slice, at: _ScoreBlock) -> Tensor:
        """Hide, in place, keys too far after a query, keys that its window has left, and padding."""
        ahead = at.last_key - self.ahead - at.first_query
        if ahead > 1:
            future = _triangle(ahead, self.group, scores.dtype, -1)
            scores[:, at.first_query + self.ahead - at.first_key :, : ahead * self.group] += future
        left = at.last_query - self.window - at.first_key
        if left > 0:
            past = _triangle(left, self.group, scores.dtype, 0).flip(0, 1)
            scores[:, :left, (at.first_key + self.window - at.first_query) * self.group :] += past
        return self._hide_padding(scores, chunk, at)

    def _hide_padding(self, scores: Tensor, chunk: slice, at: _ScoreBlock) -> Tensor:
        if self.padding is not None and at.last_key > self.unpadded:
            scores += self.padding[torch.arange(chunk.start, chunk.stop) % self.documents, at.keys]
        return scores

    def _heads(self, chunk: slice) -> Tensor:
        """The key head of each of these matrices."""
        return torch.arange(chunk.start, chunk.stop) // self.documents

    def _bias_of(self, chunk: slice, at: _ScoreBlock) -> Tensor:
        """[c, k, q G]; -inf where the key is not seen."""
        assert self.bias is not None
        keys, queries = at.last_key - at.first_key, at.last_query - at.first_query
        nearest = self._nearest(at)
        # Row i of this view begins at distance i - keys + 1, and belongs to the i-th key from the end.
        rows = self.bias[..., nearest:].unfold(-1, queries, 1)[:, :, :keys].flip(2)
        return rows.permute(0, 2, 3, 1).flatten(2)[self._heads(chunk)]

    def add_bias_grad(self, grad_scores: Tensor, chunk: slice, at: _ScoreBlock) -> None:
        """Sum the gradient [c, k, q G] of scores over each distance."""
        keys, queries = at.last_key - at.first_key, at.last_query - at.first_query
        rows = grad_scores.to(self.wide).unflatten(2, (queries, self.group)).permute(0, 3, 1, 2).flip(2)  # type: ignore[no-untyped-call]
        # Rows one longer than the sum's, laid end to end: each begins one further to the right than the one above.
        distances = queries + keys - 1
        skewed = F.pad(rows, (0, keys)).flatten(2)[..., : keys * distances].unflatten(2, (keys, distances))  # type: ignore[no-untyped-call]
        nearest = self._nearest(at)
        self.bias_grad[..., nearest : nearest + distances].index_add_(0, self._heads(chunk), skewed.sum(2))

    def _nearest(self, at: _ScoreBlock) -> int:
        """Where the bias between the first query and the last key lies, the smallest of the distances."""
        return self.zero_distance + at.first_query - (at.last_key - 1)

    def chunks(self, matrices: int) -> Iterator[slice]:
        """Matrices to work on together."""
        keys = min(self.window + self.ahead + _BLOCK, 1024)
        size = max(1, torch.get_num_threads() * _CACHED // (_BLOCK * self.group * keys))
        for start in range(0, matrices, size):
            yield slice(start, min(start + size, matrices))


@dataclass(frozen=True)
class _Drops:
    """Which weights of a batch of documents are dropped."""

    keys: Tensor
    """[K n, 1, L G] int64, of the queries."""
    rate: float

    @classmethod
    def of(cls, batch: _Batch, keys: Tensor | None, rate: float, matrices: int) -> _Drops | None:
        """For keys [N, H] of the queries; None without these."""
        return None if keys is None else cls(batch.arrange(keys[..., None], matrices).transpose(1, 2), rate)

    @property
    def scale(self) -> float:
        return scale_of(self.rate)

    def kept(self, chunk: slice, at: _ScoreBlock, rows: slice) -> Tensor:
        """[c, k, q G], whether a weight is kept."""
        return kept_in(self.keys[chunk, 0, rows], at.first_key, at.last_key, self.rate)


@torch.library.custom_op("bigtrain::blockwise_attention", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, distance_bias: Tensor | None, cu_seqlens: Tensor,
    drop_keys: Tensor | None, scale: float, window: int | None, softcap: float | None, two_sided: bool,
    drop_rate: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output [N, H, D]; and for the backward pass each softmax's shift and sum, [N, H]."""
    wide = torch.promote_types(query.dtype, torch.float32)
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    shift, total = (query.new_empty(query.shape[:2], dtype=wide) for _ in range(2))
    query, key, value = (x.contiguous() for x in (query, key, value))
    for batch in _batches(tuple(cu_seqlens.tolist())):
        n, length = batch.tokens.shape
        rule = _Scores(query, key, n, length, scale, window, softcap, distance_bias, two_sided, batch.valid)
        queries, keys, values = (batch.arrange(x, key.shape[1] * n) for x in (query, key, value))
        drops = _Drops.of(batch, drop_keys, drop_rate, len(queries))
        outputs = torch.empty_like(queries)
        shifts, totals = (queries.new_empty(len(queries), 1, queries.shape[1], dtype=wide) for _ in range(2))
        for chunk in rule.chunks(len(queries)):
            for at in _by_queries(length, rule.window, rule.ahead):
                rows = at.queries(rule.group)
                exponentials, largest = rule.forward(keys[chunk, at.keys], queries[chunk, rows], chunk, at)
                normaliser = exponentials.sum(-2, keepdim=True, dtype=wide)
                shifts[chunk, :, rows], totals[chunk, :, rows] = largest, normaliser
                if drops is not None:
                    exponentials *= drops.kept(chunk, at, rows)
                    normaliser = normaliser / drops.scale
                result = torch.bmm(exponentials.transpose(1, 2), values[chunk, at.keys])
                torch.div(result, normaliser.transpose(1, 2), out=outputs[chunk, rows])
        for target, arranged in ((output, outputs), (shift, shifts), (total, totals)):
            batch.put(target, arranged)
    return output, shift, total


@torch.library.custom_op("bigtrain::blockwise_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, distance_bias: Tensor | None, cu_seqlens: Tensor,
    drop_keys: Tensor | None, output: Tensor, shift: Tensor, total: Tensor, scale: float, window: int | None,
    softcap: float | None, two_sided: bool, drop_rate: float, wants_bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key, value (Dao et al., 2022, appendix B.4) and distance bias."""
    wide = total.dtype
    # With P = E / total, dividing the gradient by the total once leaves E in every product below.
    grad = (grad / total[..., None]).to(query.dtype)
    delta = (grad * output).sum(-1, dtype=wide)
    query, key, value = (x.contiguous() for x in (query, key, value))
    grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, value))
    grad_bias = torch.zeros_like(distance_bias) if wants_bias_grad and distance_bias is not None else query.new_empty(0)
    for batch in _batches(tuple(cu_seqlens.tolist())):
        n, length = batch.tokens.shape
        rule = _Scores(query, key, n, length, scale, window, softcap, distance_bias, two_sided, batch.valid)
        queries, keys, values, grads, shifts, deltas = (
            batch.arrange(x, key.shape[1] * n) for x in (query, key, value, grad, shift[..., None], delta[..., None])
        )
        drops = _Drops.of(batch, drop_keys, drop_rate, len(queries))
        if batch.valid is not None:  # nothing comes from padding: its exponentials are zero
            padding = ~batch.valid.repeat_interleave(rule.group, 1).repeat(key.shape[1], 1)
            shifts.masked_fill_(padding[..., None], float("inf"))
        shifts = shifts.to(query.dtype if rule.fused else wide).transpose(1, 2)
        deltas = deltas.to(query.dtype).transpose(1, 2)
        grad_queries = torch.zeros_like(queries, dtype=wide)
        grad_keys, grad_values = torch.empty_like(keys), torch.empty_like(values)
        for chunk in rule.chunks(len(queries)):
            for at in _by_keys(length, rule.window, rule.ahead):
                rows = at.queries(rule.group)
                q, k, v, g = queries[chunk, rows], keys[chunk, at.keys], values[chunk, at.keys], grads[chunk, rows]
                exponentials, slope = rule.backward(k, q, chunk, at, shifts[chunk, :, rows])
                if drops is None:
                    grad_values[chunk, at.keys] = torch.bmm(exponentials, g)
                    grad_scores = torch.baddbmm(deltas[chunk, :, rows], v, g.transpose(1, 2), beta=-1)
                else:
                    kept = drops.kept(chunk, at, rows).to(query.dtype).mul_(drops.scale)
                    grad_values[chunk, at.keys] = torch.bmm(exponentials * kept, g)
                    grad_scores = torch.bmm(v, g.transpose(1, 2)).mul_(kept).sub_(deltas[chunk, :, rows])
                grad_scores.mul_(exponentials)
                if wants_bias_grad:
                    rule.add_bias_grad(grad_scores, chunk, at)
                if slope is not None:
                    grad_scores = (grad_scores * slope).to(query.dtype)
                grad_keys[chunk, at.keys] = torch.bmm(grad_scores, q).mul_(scale)
                grad_queries[chunk, rows] += torch.bmm(grad_scores.transpose(1, 2), k)
        batch.put(grad_query, grad_queries.mul_(scale))
        batch.put(grad_key, grad_keys)
        batch.put(grad_value, grad_values)
        if wants_bias_grad:
            columns = rule.bias_columns
            first = rule.hidden_before
            width = columns.stop - columns.start
            grad_bias[:, columns] += rule.bias_grad.flatten(0, 1)[:, first : first + width]
    return grad_query, grad_key, grad_value, grad_bias


@_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, distance_bias: Tensor | None, cu_seqlens: Tensor,
    drop_keys: Tensor | None, scale: float, window: int | None, softcap: float | None, two_sided: bool,
    drop_rate: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    wide = torch.promote_types(query.dtype, torch.float32)
    shift, total = (query.new_empty(query.shape[:2], dtype=wide) for _ in range(2))
    return torch.empty_like(query, memory_format=torch.contiguous_format), shift, total


@_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, distance_bias: Tensor | None, cu_seqlens: Tensor,
    drop_keys: Tensor | None, output: Tensor, shift: Tensor, total: Tensor, scale: float, window: int | None,
    softcap: float | None, two_sided: bool, drop_rate: float, wants_bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_query, grad_key, grad_value = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)
    )
    bias = torch.empty_like(distance_bias) if wants_bias_grad and distance_bias is not None else query.new_empty(0)
    return grad_query, grad_key, grad_value, bias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], *output)
    ctx.rule = inputs[6:]


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    wants_bias_grad = ctx.needs_input_grad[3]
    *grads, grad_bias = _backward(grad, *ctx.saved_tensors, *ctx.rule, wants_bias_grad)
    return *grads, grad_bias if wants_bias_grad else None, None, None, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def blockwise_attention(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, rule: AttentionRule) -> Tensor:
    """Attention inside each document.

    Args:
        query: [N, H, D].
        key: [N, K, D], H a multiple of K.
        value: [N, K, D].
        cu_seqlens: [documents + 1] integers from 0 to N.
        rule: what is seen, and how much of it; of one sequence.

    Returns:
        [N, H, D].
    """
    drop_keys, drop_rate = rule.dropout or (None, 0.0)
    output, _, _ = _forward(
        query, key, value, rule.distance_bias, cu_seqlens, drop_keys, rule.scale, rule.window, rule.softcap,
        rule.two_sided, drop_rate,
    )  # fmt: skip
    return output


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


@lru_cache(maxsize=32)
def _triangle(size: int, group: int, dtype: torch.dtype, diagonal: int) -> Tensor:
    """[size, size group]: -inf below the diagonal, 0 elsewhere; each query has `group` columns."""
    hidden = torch.full((size, size), float("-inf"), dtype=dtype).tril_(diagonal)
    return hidden.repeat_interleave(group, 1)


def _largest(scores: Tensor) -> Tensor:
    """The maximum [c, 1, q G] over keys of 16-bit floats, by comparing their bits, which takes a tenth of the time:
    as integers, positive floats are in order and above negative ones, and those are in reverse order."""
    bits = scores.view(torch.int16)
    largest = bits.amax(-2, keepdim=True)
    if largest.min() < 0:  # a query without any positive score
        largest = torch.where(largest < 0, bits.amin(-2, keepdim=True), largest)
    return largest.view(scores.dtype)

"""Denoising: an encoder reads a corrupted document, a decoder writes the whole one (Lewis et al., 2020, section 2.2).

    document                  a b c . d e f . <end>
    sentence permutation      d e f . a b c . <end>
    text infilling            d <mask> . a b <mask> c . <end>     two spans, of 2 tokens and of none
    decoder, inputs           <start> a b c . d e f .
    decoder, labels                   a b c . d e f . <end>

Noises follow each other: sentence permutation, text infilling, token masking, token deletion, document rotation. Each
part of a document in a row is corrupted by itself; its end-of-text token stays where it is. Rows of encoder and decoder
have the length of the data's rows. No part grows: a part has at most as many masks as it has hidden tokens, and so few
spans of no token.

An encoder's row is nearly always shorter than its text, and ends in padding, which is a document of its own. The
decoder of a full row gives its last token for that document: so the last token of the row is not predicted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import exp, sqrt
from typing import ClassVar

import numpy as np

from bigtrain.base import IGNORE_INDEX
from bigtrain.objective.parts import DocumentParts, RowLayout, positions_within, shifted
from bigtrain.objective.randomness import U32, U64, below, choices, numbers_at, numbers_of_runs
from bigtrain.objective.rows import I32, I64, Bools, EncoderRows, PreparedRows, TokenRows
from bigtrain.objective.subsets import DrawnParts, first_numbers, ragged

_PERMUTED, _SENTENCES, _BUDGET, _LENGTHS, _MASKED, _DELETED, _ROTATED, _OFFSET, _GAPS = range(9)
"""Sites; the last one is the first of the cuts of a text into what spans leave."""
MASK = -1
"""What stands for a mask among places of tokens."""
_WORD_BITS = 24
"""Bits of the numbers by which sentences are sorted."""


@dataclass(frozen=True)
class Denoising:
    """Corrupts the encoder's documents; the decoder's labels are the documents as they were."""

    changes_inputs: ClassVar[bool] = True
    reads_next_ids: ClassVar[bool] = False
    causal: ClassVar[bool] = False

    mask_id: int
    start_id: int
    """What a decoder's document starts with."""
    end_of_text_id: int
    infilling_rate: float
    """Share of a text's tokens that spans hide."""
    mean: float
    """Mean of the Poisson distribution of their lengths."""
    permutation_rate: float
    """Probability that the sentences of a part change places."""
    masking_rate: float
    """Probability that a token becomes a mask."""
    deletion_rate: float
    """Probability that a token is left out; the first one of a part stays."""
    rotation_rate: float
    """Probability that a part begins with another of its tokens."""
    ends_sentence: Bools
    """[V], whether a token ends a sentence."""

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """See `Objective.prepare`."""
        ids, (count, length) = rows.input_ids.reshape(-1), rows.input_ids.shape
        parts = DocumentParts.of(rows, self.end_of_text_id)
        encoder, read = self._encoder(ids, parts, keys, length)
        cut = (encoder.used < length) & (rows.input_tokens == length)
        last = (np.flatnonzero(cut) + 1) * length - 1  # documents of padding, where decoders have none
        bounds = np.union1d(rows.boundaries, last)
        alone = np.zeros_like(cut)  # where the last part is of one token, it is the document of padding itself
        alone[last // length] = np.isin(last, rows.boundaries)
        labels = np.where(parts[~parts.withheld].covered(len(ids)), ids, np.int32(IGNORE_INDEX))
        labels[last] = IGNORE_INDEX
        counts = np.count_nonzero(labels.reshape(count, length) != IGNORE_INDEX, axis=1)
        bounds_of_encoder = encoder.boundaries((encoder.used < length) & ~alone)
        return PreparedRows(
            input_ids=shifted(ids, np.diff(bounds), self.start_id).reshape(count, length),
            labels=labels.reshape(count, length),
            positions=positions_within(bounds).reshape(count, length),
            boundaries=bounds,
            label_tokens=counts,
            input_tokens=rows.input_tokens,
            encoder=EncoderRows(
                input_ids=encoder.rows_of(read, self.end_of_text_id),
                positions=encoder.positions(bounds_of_encoder),
                boundaries=bounds_of_encoder,
            ),
        )

    def _encoder(self, ids: I32, parts: DocumentParts, keys: U64, length: int) -> tuple[RowLayout, I32]:
        """Where the parts are in the encoder's rows, and their tokens, one part after the other."""
        corrupted = NoisyParts(parts, keys, length, ragged(parts.first, parts.text), parts.text)
        if self.permutation_rate:
            corrupted = corrupted.permuted(self.ends_sentence.take(ids), self.permutation_rate)
        if self.infilling_rate:
            corrupted = corrupted.infilled(self.infilling_rate, self._bounds)
        if self.masking_rate or self.deletion_rate:
            corrupted = corrupted.masked(self.masking_rate).deleted(self.deletion_rate)
        if self.rotation_rate:
            corrupted = corrupted.rotated(self.rotation_rate)
        sizes = corrupted.sizes + parts.ended
        read = np.full(sizes.sum(), self.end_of_text_id, np.int32)
        tokens = np.append(ids, np.int32(self.mask_id)).take(corrupted.places, mode="wrap")  # MASK is the last one
        read[ragged(np.cumsum(sizes) - sizes, corrupted.sizes)] = tokens
        return RowLayout.of(sizes, parts.row, len(keys), length), read

    @cached_property
    def _bounds(self) -> U32:
        """The bounds under which a uniform 32-bit number is for lengths of at most 0, 1, ... tokens."""
        most = int(self.mean + 12 * sqrt(self.mean) + 12)  # longer ones are rarer than 2^-32
        chances = [exp(-self.mean)]
        for length in range(1, most):
            chances.append(chances[-1] * self.mean / length)
        return np.array([below(total) for total in np.cumsum(chances).tolist()], np.uint32)


@dataclass(frozen=True)
class NoisyParts:
    """Parts of documents that are being corrupted. Those that are not trained on stay as they are."""

    parts: DocumentParts
    keys: U64
    """[R]"""
    length: int
    """T"""
    places: I64
    """The tokens of all parts, one part after the other: places in the R*T flattened tokens, or MASK."""
    sizes: I64
    """[D], tokens of each part, without its end."""

    def permuted(self, ends: Bools, rate: float) -> NoisyParts:
        """With the sentences of some parts in a uniform order. `ends` [R*T]: whether a token ends one."""
        chosen = self._chosen(_PERMUTED, rate)
        begins = np.zeros(len(self.places) + 1, np.bool_)
        begins[1:] = ends.take(self.places)
        begins[np.cumsum(self.sizes) - self.sizes] = True
        first = np.flatnonzero(begins[:-1])
        sizes = np.diff(first, append=len(self.places))
        counts = np.diff(first.searchsorted(np.concatenate(([0], np.cumsum(self.sizes)))))
        before = np.cumsum(counts) - counts  # sentences of earlier parts
        number = first_numbers(len(first)) - np.repeat(before, counts)
        words = np.where(np.repeat(chosen, counts), self._numbers(_SENTENCES, self.places.take(first)), 0)
        bits = self.length.bit_length()
        ordered = np.repeat(np.arange(len(counts)) << _WORD_BITS, counts) | (words >> np.uint32(32 - _WORD_BITS))
        ordered = (ordered << bits) | number  # equal words stay in order
        ordered.sort()
        order = np.repeat(before, counts) + (ordered & ((1 << bits) - 1))
        places = self.places.take(ragged(first.take(order), sizes.take(order)))
        return replace(self, places=places)

    def infilled(self, rate: float, bounds: U32) -> NoisyParts:
        """With a mask in place of each of some spans that hide a share of the tokens.

        Lengths are drawn until they are enough, at most as many as there are tokens to hide. A number is for a length
        of at most n tokens where it is below `bounds[n]`.
        """
        fraction = numbers_at(self.keys, _BUDGET, self.parts.row, self._place()) / 2**32
        budget = np.floor(self.sizes * rate + fraction).astype(np.int64)
        budget[self.parts.withheld] = 0
        keys = self.keys.take(self.parts.row)
        drawn = bounds.searchsorted(numbers_of_runs(keys, _LENGTHS, self._place(), budget), "right")
        before = _running(drawn, budget)
        limit = np.repeat(budget, budget)
        lengths = np.minimum(drawn, limit - before)  # the one that reaches the budget is cut, and the last
        used, hides = before < limit, (before < limit) & (drawn > 0)
        hidden = np.minimum(_per_part(drawn, budget), budget)
        # A mask that hides nothing needs a token that another mask saved: so no part grows.
        most = np.repeat(hidden - _per_part(hides, budget), budget)
        used &= hides | (_running(used & ~hides, budget) < most)
        return self._with_spans(_per_part(used, budget), lengths[used], hidden)

    def _with_spans(self, counts: I64, lengths: I64, hidden: I64) -> NoisyParts:
        """With masks for spans: `counts` [D] of a part, of these lengths, with `hidden` [D] tokens together.

        Each way to have the spans, in their order, among the other tokens is as likely as any other.
        """
        others = self.sizes - hidden
        drawn = DrawnParts(self.keys, _GAPS, self.parts.row, self._place(), others + counts + 1)
        gaps = drawn.segments(counts + 1) - 1  # tokens before each span, and after the last one
        before_span = np.ones(len(gaps), np.bool_)
        before_span[np.cumsum(counts + 1) - 1] = False
        after = np.flatnonzero(before_span)  # gaps that a span follows
        spans = np.zeros(len(gaps), np.int64)
        spans[after] = lengths
        sizes = gaps + before_span
        starts = np.cumsum(gaps + spans) - (gaps + spans)
        places = self.places.take(ragged(starts, sizes), mode="clip")  # a mask may follow the last token
        places[np.cumsum(sizes).take(after) - 1] = MASK
        return replace(self, places=places, sizes=others + counts)

    def masked(self, rate: float) -> NoisyParts:
        """With masks for some tokens."""
        chosen = self._tokens(_MASKED, rate)
        return replace(self, places=np.where(chosen, MASK, self.places))

    def deleted(self, rate: float) -> NoisyParts:
        """Without some tokens."""
        kept = ~self._tokens(_DELETED, rate)
        kept[(np.cumsum(self.sizes) - self.sizes)[self.sizes > 0]] = True
        return replace(self, places=self.places[kept], sizes=_per_part(kept, self.sizes))

    def rotated(self, rate: float) -> NoisyParts:
        """With some parts begun at a uniform token; what was before it follows their last one."""
        words = numbers_at(self.keys, _OFFSET, self.parts.row, self._place())
        offset = np.where(self._chosen(_ROTATED, rate), choices(words, self.sizes), 0)
        start = np.cumsum(self.sizes) - self.sizes
        starts = np.stack((start + offset, start), axis=1).reshape(-1)
        lengths = np.stack((self.sizes - offset, offset), axis=1).reshape(-1)
        return replace(self, places=self.places[ragged(starts, lengths)])

    def _place(self) -> I64:
        return self.parts.first - self.parts.row * self.length

    def _chosen(self, site: int, rate: float) -> Bools:
        """[D], whether something happens to a part."""
        drawn = numbers_at(self.keys, site, self.parts.row, self._place())
        return (drawn < below(rate)) & ~self.parts.withheld

    def _numbers(self, site: int, places: I64) -> U32:
        """The numbers of places in the flattened tokens."""
        row, place = np.divmod(places, self.length)
        return numbers_at(self.keys, site, row, place)

    def _tokens(self, site: int, rate: float) -> Bools:
        """Whether something happens to a token; nothing does to masks."""
        chosen = self._numbers(site, np.maximum(self.places, 0)) < below(rate)
        return chosen & (self.places != MASK) & ~np.repeat(self.parts.withheld, self.sizes)


def _per_part(values: I64 | Bools, sizes: I64) -> I64:
    """[D]: the sums of values of parts, of `sizes` [D]."""
    total = np.concatenate(([0], np.cumsum(values)))
    ends = np.cumsum(sizes)
    return total[ends] - total[ends - sizes]


def _running(values: I64 | Bools, sizes: I64) -> I64:
    """The sums of the values before each one in its part, of `sizes` [D]."""
    total = np.cumsum(values) - values.astype(np.int64)
    return total - np.repeat(np.concatenate((total, [0]))[np.cumsum(sizes) - sizes], sizes)

"""Span corruption: an encoder reads a text with gaps, a decoder writes what stood there (Raffel et al., 2020, 3.1.4).

    text             a b c d e f g h i <end>
    encoder          a b <extra_id_0> e f g <extra_id_1> <end>
    decoder, labels      <extra_id_0> c d <extra_id_1> h i <end>
    decoder, inputs      <start> <extra_id_0> c d <extra_id_1> h i

Noise and other tokens alternate, and a text begins with the others, as in T5's `random_spans_noise_mask`. Each part of
a document in a row is corrupted by itself. Its end-of-text token is never noise and ends both sides.

All rows of an encoder have one length, and all of a decoder: those of a document of T tokens by T5's arithmetic, which
are `span_lengths`. With N noise tokens in K spans they are T - N + K and N + K + 1. Such a document fills both. What
many documents of a row become has to fit as well:

- The encoder has as many tokens fewer than the text as there are noise tokens less spans. A full row has N - K of
  these in any case: so its encoder is full.
- The decoder needs a token for the end of each document. Every two documents of a row cost it a span and a noise token.
- Spans first, then noise tokens, are shared among the parts of a row in exact integer quotas by their length. A part
  that has no span stays as it is. Its decoder has the end alone or, without one, a start token without a label.
- What does not fit still is left out from the end of the row. That needs rows of very short documents, which have too
  few places for noise. At T5's rates all documents of 16 tokens or more fit, in rows of 32 or more.

With `at_end` the noise of a document is its last tokens, in one span (the S-denoiser of UL2; Tay et al., 2022): T5's
number of spans of a row says only how many documents have one, and the room of the others' sentinels is padding.

So a full row has no padding in its encoder, and at most two tokens in its decoder, unless sentinels are too few. They
are without labels at the end of the last document, where no other token sees them. A row that is not full has padding
in the proportion of its own, as a document on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bigtrain.base import IGNORE_INDEX
from bigtrain.objective.parts import DocumentParts, RowLayout, labels_of, quotas, running, shifted, sums
from bigtrain.objective.randomness import U64, numbers
from bigtrain.objective.rows import I32, I64, EncoderRows, PreparedRows, TokenRows
from bigtrain.objective.subsets import DrawnParts, first_numbers, ragged

_QUOTAS, _CUTS = range(2)
"""Sites: how spans and noise are shared among the parts of a row, and the first of the cuts into segments."""


def noise_of(text: int, density: float, mean: float) -> tuple[int, int]:
    """The noise tokens and the spans of a text of so many tokens, by T5's arithmetic."""
    if text < 2:
        return 0, 0
    noise = min(max(round(text * density), 1), text - 1)
    return noise, min(max(round(noise / mean), 1), noise, text - noise)


def span_lengths(length: int, density: float, mean: float) -> tuple[int, int]:
    """The lengths of the rows of an encoder and of its decoder.

    Args:
        length: tokens of a row of the data.
        density: noise tokens per token.
        mean: noise tokens per span.
    """
    noise, spans = noise_of(length - 1, density, mean)
    return length - noise + spans, noise + spans + 1


@dataclass(frozen=True)
class SpanCorruption:
    """Replaces spans of texts by sentinels in the encoder; the decoder's labels are the sentinels with their spans.

    A document that is not trained on is corrupted like the others, because rows have one length, but has no labels.
    """

    changes_inputs: ClassVar[bool] = True
    reads_next_ids: ClassVar[bool] = False
    causal: ClassVar[bool] = False

    density: float
    """Noise tokens per token."""
    mean: float
    """Mean length of a span in tokens."""
    sentinels: Sequence[int]
    """What stands for the spans of a document, in this order. A document has at most so many spans: where it would have
    more, its noise is in fewer and longer ones."""
    start_id: int
    """What a decoder's document starts with, and what pads its rows."""
    end_of_text_id: int
    at_end: bool = False
    """Whether the noise of a document is one span, its last tokens: then the decoder goes on with a text."""

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """See `Objective.prepare`."""
        count, length = rows.input_ids.shape
        parts, noise, counts = self._fitting(DocumentParts.of(rows, self.end_of_text_id), keys, length)
        lengths = span_lengths(length, self.density, self.mean)
        encoder = RowLayout.of(_encoder_sizes(parts, noise, counts), parts.row, count, lengths[0])
        decoder = RowLayout.of(_decoder_sizes(parts, noise, counts), parts.row, count, lengths[1])
        padded = encoder.used < encoder.length
        spans = self._spans(parts, noise, counts, keys, length)
        seen, targets = self._sides(rows.input_ids.reshape(-1), parts, counts, *spans)
        bounds = encoder.boundaries(padded), decoder.boundaries(padded)
        labelled = ~parts.withheld & (counts + parts.ended > 0)
        return PreparedRows(
            input_ids=decoder.rows_of(shifted(targets, decoder.sizes, self.start_id), self.start_id),
            labels=decoder.rows_of(labels_of(targets, decoder.sizes, labelled), IGNORE_INDEX),
            positions=decoder.positions(bounds[1]),
            boundaries=bounds[1],
            label_tokens=sums(decoder.sizes * labelled, parts.row, count),
            input_tokens=rows.input_tokens,
            encoder=EncoderRows(
                input_ids=encoder.rows_of(seen, self.end_of_text_id),
                positions=encoder.positions(bounds[0]),
                boundaries=bounds[0],
            ),
        )

    def _fitting(self, parts: DocumentParts, keys: U64, length: int) -> tuple[DocumentParts, I64, I64]:
        """The parts that fit into rows, with noise tokens [D] and spans [D] of each."""
        noise, spans = self._quotas(parts, keys, length)
        sizes = _encoder_sizes(parts, noise, spans), _decoder_sizes(parts, noise, spans)
        ends = [running(each, parts.row, len(keys)) + each for each in sizes]
        most = span_lengths(length, self.density, self.mean)
        # A full decoder has no room for the padding of an encoder that is not.
        fits = (ends[0] <= most[0]) & ((ends[1] < most[1]) | ((ends[1] == most[1]) & (ends[0] == most[0])))
        return parts[fits], noise[fits], spans[fits]

    def _quotas(self, parts: DocumentParts, keys: U64, length: int) -> tuple[I64, I64]:
        row, text, count = parts.row, parts.text, len(keys)
        words = numbers(keys, _QUOTAS, 2)
        all_noise, all_spans = noise_of(length - 1, self.density, self.mean)
        documents = np.bincount(row, minlength=count)
        filled = sums(text + parts.ended, row, count)
        fewer = _share(all_noise - all_spans, filled, length)
        room = all_noise + all_spans + 1 - fewer - documents - (filled < length)
        wanted = np.clip(_share(all_spans, filled, length), 1, np.maximum(room // 2, 0))
        places = text // 2  # a span and another token before it
        spans = quotas(np.minimum(wanted, sums(places, row, count)), places, row, words[:, 0])
        places = np.where(spans > 0, text - 2 * spans, 0)
        noise = spans + quotas(np.minimum(fewer, sums(places, row, count)), places, row, words[:, 1])
        return noise, np.minimum(spans, 1 if self.at_end else len(self.sentinels))

    def _spans(self, parts: DocumentParts, noise: I64, counts: I64, keys: U64, length: int) -> tuple[I64, I64]:
        """Where the spans of all parts start in the flattened tokens, and their lengths."""
        if self.at_end:
            own = counts > 0
            return (parts.first + parts.text - noise)[own], noise[own]
        return _spans(parts, noise, counts, keys, length)

    def _sides(self, ids: I32, parts: DocumentParts, counts: I64, starts: I64, lengths: I64) -> tuple[I32, I32]:
        """What the encoder reads, and what the decoder writes, one part after the other.

        The decoder has of a part a run of tokens for each span, with the token before it, and then the part's end. Each
        sentinel takes the place of the token before its span there, and of the span's first one in the encoder.
        """
        names = np.array(self.sentinels, np.int32).take(ragged(np.zeros_like(counts), counts))
        with_last = np.flatnonzero((parts.ended > 0) | (counts == 0))
        last = np.zeros_like(counts)
        last[with_last] = 1
        spans = first_numbers(len(starts)) + np.repeat(np.cumsum(last) - last, counts)
        ends = (np.cumsum(counts + last) - 1)[with_last]
        run, size = np.ones((2, len(spans) + len(ends)), np.int64)
        run[spans], size[spans] = starts - 1, lengths + 1
        run[ends] = (parts.first + parts.text + parts.ended - 1)[with_last]
        places, first = ragged(run, size), np.cumsum(size) - size
        written = ids.take(places)
        written[first.take(spans)] = names
        written[first.take(ends)] = np.where(parts.ended, self.end_of_text_id, self.start_id)[with_last]
        seen = parts.covered(len(ids))
        seen[places] = False
        seen[run] = seen[starts] = True
        read = ids[seen]
        whole = parts.text + parts.ended
        gaps = parts.first - (np.cumsum(whole) - whole)  # tokens before a part that are of none
        read[starts - np.repeat(gaps, counts) - (np.cumsum(lengths - 1) - (lengths - 1))] = names
        return read, written


def _share(total: int, filled: I64, length: int) -> I64:
    """[R]: of a total for full rows, what is for rows with so many tokens; rounded."""
    return (2 * total * filled + length) // (2 * length)


def _encoder_sizes(parts: DocumentParts, noise: I64, spans: I64) -> I64:
    return parts.text - noise + spans + parts.ended


def _decoder_sizes(parts: DocumentParts, noise: I64, spans: I64) -> I64:
    return noise + spans + np.maximum(parts.ended, spans == 0)


def _spans(parts: DocumentParts, noise: I64, counts: I64, keys: U64, length: int) -> tuple[I64, I64]:
    """Where the spans of all parts start in the flattened tokens, and their lengths.

    A part has `counts` [D] of them with `noise` [D] tokens together.

    The numbers at the first places of a text cut its other tokens, and those at its last places its noise.
    """
    own = counts > 0
    row, first, texts = parts.row[own], parts.first[own], parts.text[own]
    hidden = noise[own]
    place = first - row * length
    drawn = DrawnParts(
        keys,
        _CUTS,
        row=np.concatenate((row, row)),
        place=np.concatenate((place, place + texts - hidden)),
        size=np.concatenate((texts - hidden, hidden)),
    )
    others, lengths = drawn.segments(np.concatenate((counts[own], counts[own]))).reshape(2, -1)
    before = np.repeat(first - (np.cumsum(texts) - texts), counts[own])
    return before + np.cumsum(others + lengths) - lengths, lengths

"""Labelled documents: the tokens of their texts, the label of each token, and documents that fit into a row.

    segments --encode--> EncodedText --fit--> one document, or several windows of a long one, each no longer than a row
    spans of characters   labels of tokens

classes, tags   a document that is too long is cut; of two texts the longer one, until both are as long
answers         a context that is too long becomes windows, each with the question (Devlin et al., 2019, run_squad.py)
turns           a conversation ends with the last answer of the assistant that fits
parts           documents stay as they are

A token has the label of the span that it shares a character with, as in transformers' mask of assistants' tokens. In
byte-level BPE a word's first token often begins with the blank before it, which belongs to no span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bigtrain.base import IGNORE_INDEX
from bigtrain.data.format.documents import Segment
from bigtrain.data.format.labels import ANSWER, CONTEXT, LabelScheme

Ids = npt.NDArray[np.unsignedinteger]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class EncodedText(NamedTuple):
    """The n tokens of a text."""

    ids: Ids
    """[n]"""
    offsets: I64 | None = None
    """[n, 2], the characters [start, end) of each token; None where no span has labels."""


class LabelledTokens(NamedTuple):
    """The n tokens of a segment, or of a document, with their labels."""

    ids: Ids
    """[n]"""
    labels: I32
    """[n]"""
    outside: int = IGNORE_INDEX
    """The label of tokens in no span."""
    ends: tuple[int, ...] = ()
    """How many tokens there are up to the end of each span."""

    def cut(self, start: int, end: int) -> LabelledTokens:
        """Its tokens [start, end)."""
        return LabelledTokens(self.ids[start:end], self.labels[start:end], self.outside)


@dataclass(frozen=True)
class ExampleRules:
    """How the labelled documents of a source are made; it is pickled for the worker processes."""

    scheme: LabelScheme
    row: int | None
    """Tokens of a row, which a document fits into; None where it may be longer."""
    separator: str | None
    """The token between two texts."""
    doc_stride: int
    """answers: tokens between the starts of two windows of a context."""
    max_query_length: int
    """answers: tokens of a question, at most."""

    def labelled(self, segment: Segment, text: EncodedText) -> LabelledTokens:
        """The tokens of a segment with their labels."""
        scheme, outside = self.scheme, self.scheme.number(segment.label)
        labels = np.full(len(text.ids), outside, np.int32)
        if not segment.spans:
            return LabelledTokens(text.ids, labels, outside)
        assert text.offsets is not None
        bounds = np.maximum.accumulate(text.offsets, axis=0)
        first = bounds[:, 1].searchsorted([span.start for span in segment.spans], "right")
        after = bounds[:, 0].searchsorted([span.end for span in segment.spans], "left")
        free = 0  # the first token that no span has so far
        for span, start, end in zip(segment.spans, first.tolist(), after.tolist(), strict=True):
            start = max(start, free)
            if start < end:
                last = start + 1 if scheme.kind == "tags" else end
                labels[start:last], free = scheme.number(span.label), last
        return LabelledTokens(text.ids, labels, outside, tuple(after.tolist()))

    def documents(
        self, segments: Sequence[LabelledTokens], begin: Ids, separator: Ids, end: Ids
    ) -> tuple[list[LabelledTokens], bool]:
        """The documents that segments become, and whether something was left out. No document: nothing fits.

        What stands between segments or at the end has the label that its segment has outside spans; beside answers
        it has none. A conversation begins with what its template says, and ends once.

        Args:
            segments: of one document.
            begin: what documents begin with, as are the next two of the type of the tokens in shards.
            separator: what stands between two texts.
            end: [1], what documents end with.
        """
        chat = self.scheme.kind == "turns"
        edges = [IGNORE_INDEX if self.scheme.kind == "answers" else segment.outside for segment in segments]
        before = [begin[:0] if chat else begin, *(separator for _ in segments[1:])]
        added = [_all_of(ids, label) for ids, label in zip(before, [edges[0], *edges[:-1]], strict=True)]
        fitting, cut = self._fit(segments, end, sum(len(ids) for ids in before))
        documents = []
        for some in fitting:
            pieces = [piece for pair in zip(added, some, strict=True) for piece in pair]
            ended = chat and np.array_equal(some[-1].ids[-1:], end)
            documents.append(_joined([*pieces, *([] if ended else [_all_of(end, edges[-1])])], end.dtype))
        return documents, cut

    def _fit(
        self, segments: Sequence[LabelledTokens], end: Ids, before: int
    ) -> tuple[list[Sequence[LabelledTokens]], bool]:
        """Segments that fit into a row beside so many other tokens and an end, once or more often, and whether some
        were cut."""
        if self.row is None:
            return [segments], False
        room = self.row - before - 1
        if self.scheme.kind == "answers":
            question, context = segments
            shown = question.cut(0, self.max_query_length)
            windows = self._windows(context, room - len(shown.ids))
            return [[shown, window] for window in windows], len(shown.ids) < len(question.ids)
        whole = sum(len(segment.ids) for segment in segments)
        if self.scheme.kind == "turns":
            (turns,) = segments
            if whole <= room + np.array_equal(turns.ids[-1:], end):
                return [segments], False
            ends = [each for each in turns.ends if each <= room]
            return [[turns.cut(0, each)] for each in ends[-1:]], bool(ends)
        if whole <= room:
            return [segments], False
        lengths = shortened([len(segment.ids) for segment in segments], room)
        return [[segment.cut(0, length) for segment, length in zip(segments, lengths, strict=True)]], True

    def _windows(self, context: LabelledTokens, room: int) -> list[LabelledTokens]:
        """The windows of a context of at most `room` tokens. An answer that is not whole in one is not an answer."""
        if room < 1:
            return []
        answer, plain = self.scheme.number(ANSWER), self.scheme.number(CONTEXT)
        place = np.flatnonzero(context.labels == answer)
        windows, start = [], 0
        while True:
            end = min(start + room, len(context.ids))
            window = context.cut(start, end)
            if len(place) and not start <= place[0] <= place[-1] < end:
                window = window._replace(labels=np.where(window.labels == answer, np.int32(plain), window.labels))
            windows.append(window)
            if end == len(context.ids):
                return windows
            start += min(self.doc_stride, room)


def _joined(pieces: Sequence[LabelledTokens], dtype: np.dtype[np.unsignedinteger]) -> LabelledTokens:
    return LabelledTokens(
        np.concatenate([piece.ids.astype(dtype, copy=False) for piece in pieces]),
        np.concatenate([piece.labels for piece in pieces]),
    )


def _all_of(ids: Ids, label: int) -> LabelledTokens:
    return LabelledTokens(ids, np.full(len(ids), label, np.int32))


def shortened(lengths: Sequence[int], room: int) -> list[int]:
    """Lengths with the sum `room`, of which the longest ones were cut until they are equal."""
    kept = list(lengths)
    left = room
    for done, number in enumerate(sorted(range(len(kept)), key=lambda each: lengths[each])):
        kept[number] = min(lengths[number], left // (len(kept) - done))
        left -= kept[number]
    return kept

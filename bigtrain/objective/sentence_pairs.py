"""Rows of two segments as an encoder reads them, and what it is asked of them.

    [CLS] first [SEP] second [SEP]      token types 0 0 0 1 1      (Devlin et al., 2019, section 3.1)

next_sentence    whether the second segment follows the first one in its document (Devlin et al., 2019)
sentence_order   whether the two, which follow each other, are in their order (Lan et al., 2020, ALBERT, section 3.1)

A label stands at the [CLS] token: 0 where they follow in this order, 1 where they do not, as transformers has it. A row
with one segment has none, and neither has a row of which a part is not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bigtrain.base import IGNORE_INDEX
from bigtrain.objective.randomness import U64, numbers
from bigtrain.objective.rows import I32, I64, Bools, TokenRows

PAIR_TOKENS = 3
"""Tokens of a row of two segments that are not of the segments."""
_ORDER = 64
"""The site of the order of segments."""


class PairedRows(NamedTuple):
    """Rows of which each is one document: a pair."""

    rows: TokenRows
    token_type_ids: I32
    """[R, T], 0 to the first [SEP], then 1; 0 in padding."""
    example_labels: I32
    """[R, T], at the first token of each row; else IGNORE_INDEX."""


@dataclass(frozen=True)
class SentencePairs:
    """Puts the two segments of a row into one document."""

    cls_id: int
    sep_id: int
    orders: bool
    """sentence_order: half of the pairs, by the row's address, are the other way round. Else next_sentence."""

    def joined(self, rows: TokenRows, keys: U64) -> PairedRows:
        """The pairs of R rows of one segment or two, and at least PAIR_TOKENS of padding; or of padding alone."""
        count, length = rows.input_ids.shape
        segments = _Segments.of(rows, keys if self.orders else None)
        first, end = segments.first[:, None], segments.end[:, None]
        place = np.arange(length)
        second = np.where(segments.pairs, segments.first + 2, length)[:, None]
        source = np.select(
            [place >= end, place == 0, place <= first, (place == first + 1) | (place == end - 1)],
            [length - 1, length, place - 1 + segments.first_at[:, None], length + 1],
            place - second + segments.second_at[:, None],
        )
        special = np.tile(np.array([self.cls_id, self.sep_id], np.int32), (count, 1))
        starts = np.arange(count) * length
        paired = TokenRows(
            input_ids=np.take_along_axis(np.concatenate((rows.input_ids, special), axis=1), source, axis=1),
            next_ids=np.full((count, length), IGNORE_INDEX, np.int32),
            positions=np.where(place < end, place, place - end).astype(np.int32),
            boundaries=np.unique(np.concatenate((starts, starts + segments.end, [count * length]))),
            next_tokens=np.zeros(count, np.int64),
            input_tokens=rows.input_tokens,
            withheld=[segments.moved(*part) for part in rows.withheld],
        )
        labels = np.full((count, length), IGNORE_INDEX, np.int32)
        asked = segments.pairs & (segments.follow if self.orders else True)
        asked[[row for row, _, _ in rows.withheld]] = False
        labels[asked, 0] = (segments.swapped if self.orders else ~segments.follow)[asked]
        types = ((place >= second) & (place < end)).astype(np.int32)
        return PairedRows(paired, types, labels)


@dataclass(frozen=True)
class _Segments:
    """Where the segments of R rows are; `first` is the one that comes first in the pair."""

    first: I64
    """[R], its tokens."""
    cut: I64
    """[R], where the second one begins in the row of the data."""
    pairs: Bools
    """[R], whether there are two."""
    follow: Bools
    """[R], whether the later one in the row follows the other in its document."""
    swapped: Bools
    """[R], whether they are the other way round than in the row."""
    end: I64
    """[R], tokens of the pair, with its special ones."""

    @property
    def first_at(self) -> I64:
        """[R], where the first one of the pair begins in the row of the data."""
        return np.where(self.swapped, self.cut, 0)

    @property
    def second_at(self) -> I64:
        """[R], likewise."""
        return np.where(self.swapped, 0, self.cut)

    @classmethod
    def of(cls, rows: TokenRows, keys: U64 | None) -> _Segments:
        """The segments of rows.

        Args:
            rows: of the data.
            keys: [R], decide which pairs are swapped. None: none is.
        """
        count, length = rows.input_ids.shape
        part = rows.boundaries[:-1].searchsorted(np.arange(count) * length)
        tokens = rows.input_tokens
        sizes = np.diff(rows.boundaries)
        one = np.minimum(sizes[part], tokens)
        pairs = tokens > one
        assert rows.follows is not None  # the packing makes pairs
        follow = rows.follows[np.minimum(part + 1, len(sizes) - 1)] & pairs
        swapped = np.zeros(count, np.bool_) if keys is None else (numbers(keys, _ORDER, 1)[:, 0] % 2 == 1) & follow
        return cls(
            first=np.where(swapped, tokens - one, one),
            cut=one,
            pairs=pairs,
            follow=follow,
            swapped=swapped,
            end=np.where(tokens > 0, tokens + np.where(pairs, PAIR_TOKENS, PAIR_TOKENS - 1), 0),
        )

    def moved(self, row: int, first: int, end: int) -> tuple[int, int, int]:
        """Where a part of one segment is in the pair: row, first token, token after the last one."""
        in_first = (first < self.cut[row]) != self.swapped[row]
        by = 1 - self.first_at[row] if in_first else self.first[row] + 2 - self.second_at[row]
        return row, int(first + by), int(end + by)

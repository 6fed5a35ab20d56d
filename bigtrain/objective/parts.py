"""The parts of documents in rows: where they are, their shares of what a row has, and rows laid out from new parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bigtrain.base import IGNORE_INDEX
from bigtrain.objective.randomness import U32, choices
from bigtrain.objective.rows import I32, I64, Bools, TokenRows


@dataclass(frozen=True)
class DocumentParts:
    """The D parts of documents in rows, without padding, in order. A part is what a row has of one document."""

    row: I64
    """[D]"""
    first: I64
    """[D], where a part starts in the R*T flattened tokens."""
    text: I64
    """[D], tokens before the end-of-text token."""
    ended: I64
    """[D], 1 for a part that ends in the end-of-text token, otherwise 0."""
    withheld: Bools
    """[D], whether a part is not trained on."""

    def __getitem__(self, chosen: Bools) -> DocumentParts:
        return DocumentParts(*(field[chosen] for field in vars(self).values()))

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def of(cls, rows: TokenRows, end_of_text_id: int) -> DocumentParts:
        """The parts of rows, whose documents end in a token."""
        length = rows.input_ids.shape[1]
        first, size = rows.boundaries[:-1], np.diff(rows.boundaries)
        withheld = withheld_parts(rows)
        row, place = np.divmod(first, length)
        own = place < rows.input_tokens[row]
        row, first, size, withheld = row[own], first[own], size[own], withheld[own]
        ended = (rows.input_ids.reshape(-1)[first + size - 1] == end_of_text_id).astype(np.int64)
        return cls(row, first, size - ended, ended, withheld)

    def covered(self, length: int) -> Bools:
        """Whether each of `length` flattened tokens is of one of the parts."""
        sizes = self.text + self.ended
        if sizes.sum() == length:
            return np.ones(length, np.bool_)
        bounds = np.stack((self.first, self.first + sizes), axis=1).reshape(-1)
        gaps = np.diff(np.concatenate(([0], bounds, [length])))
        return np.repeat(np.arange(len(gaps)) % 2 == 1, gaps)


def withheld_parts(rows: TokenRows) -> Bools:
    """Whether each document between the boundaries, padding included, begins in what is not trained on."""
    first, length = rows.boundaries[:-1], rows.input_ids.shape[1]
    found = np.zeros(len(first), np.bool_)
    for row, begin, end in rows.withheld:
        found[first.searchsorted(row * length + begin) : first.searchsorted(row * length + end)] = True
    return found


def sums(values: I64, row: I64, rows: int) -> I64:
    """[R]: the sum of the values [D] of each row."""
    return np.bincount(row, values, rows).astype(np.int64)  # floats are exact up to 2^53


def running(values: I64, row: I64, rows: int) -> I64:
    """[D]: the sum of the values of a row before each of its parts. Parts are in the order of their rows."""
    total, own = np.cumsum(values) - values, sums(values, row, rows)
    return total - (np.cumsum(own) - own)[row]


def quotas(totals: I64, weights: I64, row: I64, words: U32) -> I64:
    """[D]: integer shares of the totals [R] of rows, by the weights [D] of their parts.

    They are differences of cumulative floors after a uniform number below 1, from words [R]. So they have exactly the
    row's total; each is an exact share rounded up or down, and this share in the mean. No share exceeds its weight
    where no total exceeds the weights of its row. A row of no weight gives nothing.
    """
    rows = len(totals)
    before, own = running(weights, row, rows), np.maximum(sums(weights, row, rows), 1)
    total, own, offset = totals[row], own[row], choices(words, own)[row]
    return (total * (before + weights) + offset) // own - (total * before + offset) // own


@dataclass(frozen=True)
class RowLayout:
    """Where new parts of documents lie in rows of a fixed length: one after the other, and then padding."""

    row: I64
    """[D], of each part."""
    sizes: I64
    """[D], tokens of the new parts."""
    used: I64
    """[R], tokens of all parts of a row, at most `length`."""
    length: int

    @classmethod
    def of(cls, sizes: I64, row: I64, rows: int, length: int) -> RowLayout:
        """The layout of parts [D] in their rows."""
        return cls(row, sizes, sums(sizes, row, rows), length)

    def boundaries(self, padded: Bools) -> I64:
        """The boundaries of documents. In rows [R] that are `padded` the padding is a document of its own.

        In the others it belongs to the last part.
        """
        starts = self.row * self.length + running(self.sizes, self.row, len(self.used))
        padding = (np.arange(len(self.used)) * self.length + self.used)[padded]
        bounds = np.concatenate((starts, padding, [len(self.used) * self.length]))
        bounds.sort()
        return bounds

    def positions(self, boundaries: I64) -> I32:
        """[R, length], from 0 in each document between these boundaries."""
        return positions_within(boundaries).reshape(-1, self.length)

    def rows_of(self, values: I32, padding: int) -> I32:
        """[R, length]: the values of all parts, one after the other, as rows."""
        if len(values) == len(self.used) * self.length:
            return values.reshape(-1, self.length)
        result = np.full((len(self.used), self.length), padding, np.int32)
        ends = np.cumsum(self.used)
        for row, (start, end) in enumerate(zip((ends - self.used).tolist(), ends.tolist(), strict=True)):
            result[row, : end - start] = values[start:end]
        return result


def positions_within(boundaries: I64) -> I32:
    """The positions from 0 in each document between boundaries, of all tokens."""
    starts = np.repeat(boundaries[:-1].astype(np.int32), np.diff(boundaries))
    return np.subtract(_counted(len(starts)), starts, out=starts)


@lru_cache(maxsize=4)
def _counted(count: int) -> I32:
    return np.arange(count, dtype=np.int32)


def shifted(targets: I32, sizes: I64, start_id: int) -> I32:
    """What a decoder reads of parts, of `sizes` [D]: the token before each target, a start token before the first."""
    result = np.empty_like(targets)
    result[1:] = targets[:-1]
    result[np.cumsum(sizes) - sizes] = start_id
    return result


def labels_of(targets: I32, sizes: I64, labelled: Bools) -> I32:
    """The targets of parts, of `sizes` [D], without those of parts that are not labelled [D]."""
    if labelled.all():
        return targets
    return np.where(np.repeat(labelled, sizes), targets, np.int32(IGNORE_INDEX))

"""Uniform subsets by address, and with them uniform ways to cut a run of tokens into segments.

A subset of a part is the first different ones of a sequence of draws. Only as many numbers are drawn and sorted as it
needs. Where it is more than half of a part, its complement is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bigtrain.objective.randomness import U32, U64, choices, numbers_at
from bigtrain.objective.rows import I64, Bools


@dataclass(frozen=True)
class DrawnParts:
    """P parts of rows with keys [R], of which something is drawn. No two of them share a place."""

    keys: U64
    """[R]"""
    site: int
    """The first one of a part's draws. They go on at the sites after it, which hardly ever are more than ten."""
    row: I64
    """[P]"""
    place: I64
    """[P], where a part starts in its row. The numbers at its places are its own."""
    size: I64
    """[P]"""

    def __getitem__(self, chosen: Bools | I64) -> DrawnParts:
        return DrawnParts(self.keys, self.site, self.row[chosen], self.place[chosen], self.size[chosen])

    def segments(self, counts: I64) -> I64:
        """Cut each part into so many segments [P], from 1 to its size: the lengths of all segments, in order.

        Each way to cut a part into so many non-empty segments is as likely as any other.
        """
        inner = DrawnParts(self.keys, self.site, self.row, self.place, self.size - 1)
        cuts = inner.subsets(counts - 1) + 1
        last = np.cumsum(counts) - 1
        places = ragged(np.arange(len(counts)) + np.cumsum(counts - 1) - (counts - 1), counts - 1)
        lengths = np.empty(counts.sum() + 1, np.int64)
        lengths[places], lengths[last] = cuts, self.size
        lengths[places + 1] -= cuts
        return lengths[:-1]

    def subsets(self, counts: I64) -> I64:
        """Uniform subsets with so many elements [P], each at most its size: numbers from 0, in order in each part."""
        inverse = 2 * counts > self.size
        drawn = np.where(inverse, self.size - counts, counts)
        values = self._drawn(drawn)
        if not inverse.any():
            return values
        start = np.cumsum(self.size) - self.size
        chosen = np.repeat(inverse, self.size)
        places = values + np.repeat(start, drawn)
        chosen[places] = ~chosen[places]
        return np.flatnonzero(chosen) - np.repeat(start, counts)

    def _drawn(self, counts: I64) -> I64:
        """The first different draws, `counts` [P] of each part, in order: at most half of it."""
        result = np.empty(counts.sum(), np.int64)
        start = np.cumsum(counts) - counts
        pending, rounds = np.flatnonzero(counts), 0
        while len(pending):
            rounds += 1
            values, enough = self[pending]._first_different(counts[pending], rounds)
            found = pending[enough]
            result[ragged(start[found], counts[found])] = values
            pending = pending[~enough]
        return result

    def _first_different(self, counts: I64, rounds: int) -> tuple[I64, Bools]:
        """What `_drawn` gives of the parts for which so many rounds are enough; whether they are [P]."""
        draws = draws_of(self.size, counts)
        total = rounds * draws
        start = np.cumsum(total) - total
        part = np.repeat(np.arange(len(total)), total)
        number = first_numbers(len(part)) - start[part]
        values = choices(self._words(part, number, draws, rounds), self.size[part])
        bits = int(total.max()).bit_length()
        wide = int(self.size.max()).bit_length() + bits
        ordered = np.sort((part << wide) | (values << bits) | number)
        fresh = np.ones(len(ordered), np.bool_)
        fresh[1:] = (ordered[1:] ^ ordered[:-1]) >> bits != 0
        place = start[part] + (ordered & ((1 << bits) - 1))  # parts stay in order: `part` is that of `ordered` too
        before = np.zeros(len(part) + 1, np.int64)
        before[1:][place] = fresh
        np.cumsum(before, out=before)
        enough = before[start + total] - before[start] >= counts
        fresh &= before[place] < np.where(enough, before[start] + counts, 0)[part]
        chosen = np.flatnonzero(fresh)
        return (ordered[chosen] >> bits) & ((1 << (wide - bits)) - 1), enough

    def _words(self, part: I64, number: I64, draws: I64, rounds: int) -> U32:
        """The numbers [n] of draws in parts [n]; each round has `draws` [P] at a site of its own."""
        if rounds == 1:
            return numbers_at(self.keys, self.site, self.row[part], self.place[part] + number)
        site, number = np.divmod(number, draws[part])
        words = np.empty(len(part), np.uint32)
        for one in range(rounds):
            own = np.flatnonzero(site == one)
            at = part[own]
            words[own] = numbers_at(self.keys, self.site + one, self.row[at], self.place[at] + number[own])
        return words


def draws_of(sizes: I64, counts: I64) -> I64:
    """The draws of one round: enough in nearly all cases, and at most one a place of a part.

    A draw is one of those before with a probability of at most counts / sizes: so counts^2 / (sizes - counts) is about
    twice the expected number of repetitions.
    """
    return np.minimum(counts + counts**2 // np.maximum(sizes - counts, 1) + np.minimum(counts, 4), sizes)


def ragged(starts: I64, lengths: I64) -> I64:
    """Runs of consecutive numbers, of `lengths` [n] from `starts` [n], one after the other."""
    ends = np.cumsum(lengths)
    result = np.repeat(starts - (ends - lengths), lengths)
    result += first_numbers(len(result))
    return result


def first_numbers(count: int) -> I64:
    """The numbers from 0 to count - 1, not to be written to."""
    return _counted(1 << max(count - 1, 0).bit_length())[:count]


@lru_cache(maxsize=4)
def _counted(count: int) -> I64:
    return np.arange(count)

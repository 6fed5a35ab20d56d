"""Uniform subsets by address, and with them uniform ways to cut a run of tokens into segments.

A subset of a part is the first different ones of a sequence of draws. Only as many numbers are drawn and sorted as it
needs. Where it is more than half of a part, its complement is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bigtrain.objective.randomness import U32, U64, choices, numbers_of_runs
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
        start, last = np.cumsum(self.size) - self.size, np.cumsum(counts) - 1
        ends = np.empty(len(cuts) + len(counts) + 1, np.int64)  # of all segments, after the start of the first one
        ends[0], ends[1:][last] = 0, start + self.size
        places = first_numbers(len(cuts)) + np.repeat(np.arange(len(counts)), counts - 1)
        ends[1:][places] = cuts + np.repeat(start, counts - 1)
        return ends[1:] - ends[:-1]

    def subsets(self, counts: I64) -> I64:
        """Uniform subsets with so many elements [P], each at most its size: numbers from 0, in order in each part."""
        inverse = 2 * counts > self.size
        drawn = np.where(inverse, self.size - counts, counts)
        values = self._drawn(drawn)
        if not inverse.any():
            return values
        result = np.empty(counts.sum(), np.int64)
        result[np.repeat(~inverse, counts)] = values[np.repeat(~inverse, drawn)]
        others = complements(values[np.repeat(inverse, drawn)], drawn[inverse], self.size[inverse])
        result[np.repeat(inverse, counts)] = others
        return result

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
        starts = np.repeat(start, total)
        number = first_numbers(len(starts)) - starts
        values = choices(self._words(draws, rounds), np.repeat(self.size, total))
        bits = int(total.max()).bit_length()
        wide = int(self.size.max()).bit_length() + bits
        ordered = _in_order(np.repeat(np.arange(len(total)) << wide, total) | (values << bits) | number)
        values, number = ordered >> bits, ordered & ((1 << bits) - 1)
        fresh = np.ones(len(ordered), np.bool_)
        np.not_equal(values[1:], values[:-1], out=fresh[1:])
        seen = np.empty_like(fresh)  # in the order of draws
        seen[starts + number] = fresh  # parts stay in order
        found = np.zeros(len(seen) + 1, np.int64)
        np.cumsum(seen, out=found[1:])
        used = found.searchsorted(found[start] + counts) - start  # draws of a part until there are enough
        enough = used <= total
        fresh &= number < np.repeat(np.where(enough, used, 0), total)
        return values.take(np.flatnonzero(fresh)) & ((1 << (wide - bits)) - 1), enough

    def _words(self, draws: I64, rounds: int) -> U32:
        """The numbers of all draws, one part after the other; each round has `draws` [P] at a site of its own."""
        return numbers_of_runs(
            np.repeat(self.keys.take(self.row), rounds),
            self.site + np.tile(np.arange(rounds), len(draws)),
            np.repeat(self.place, rounds),
            np.repeat(draws, rounds),
        )


def _in_order(numbers: I64) -> I64:
    """Numbers that are not negative, sorted: in 32 bits, where these are enough, since that is twice as fast."""
    narrow = int(numbers.max()) < 1 << 32
    return np.sort(numbers.astype(np.uint32)).astype(np.int64) if narrow else np.sort(numbers)


def complements(values: I64, counts: I64, sizes: I64) -> I64:
    """What subsets with `counts` [P] elements lack of the numbers from 0 to before `sizes` [P], in order."""
    start = np.cumsum(sizes) - sizes
    lacking = np.ones(sizes.sum(), np.bool_)
    lacking[values + np.repeat(start, counts)] = False
    return np.flatnonzero(lacking) - np.repeat(start, sizes - counts)


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


@lru_cache(maxsize=32)
def _counted(count: int) -> I64:
    return np.arange(count)

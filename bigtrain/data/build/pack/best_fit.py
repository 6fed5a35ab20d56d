"""Best-fit packing: a document is cut only where it is longer than a row, and rows are filled with what fits best.

Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (ICML 2024, arXiv 2404.10830): documents longer than T
are cut into spans of T tokens and a rest; then all spans, the longest first, go each into the fullest row that still
has room (best-fit decreasing).

The paper keeps a tree over the rows' free space, a step for each span. Here all spans of a length are placed together:
a row whose free space f is the smallest that takes a span of length l is, with that span in it, still the one with the
least room if there is room at all; so it takes f // l of them before the next row is considered. A group of equally
full rows is one operation on arrays, and the result is that of the algorithm span by span.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


def cut(lengths: I64, sequence_length: int) -> I64:
    """The spans [m] of documents of these lengths [n], in their order: each T tokens, and a rest of 1 to T."""
    count = -(-lengths // sequence_length)
    spans = np.full(count.sum(), sequence_length, np.int64)
    spans[np.cumsum(count) - 1] = lengths - (count - 1) * sequence_length
    return spans


def assign(spans: I64, sequence_length: int) -> I64:
    """The row [m] of spans of these lengths [m], each in 1..T.

    Of rows that are equally full the one that was opened first is taken; of equally long spans, the first in the
    stream is placed first.
    """
    bins = np.empty(len(spans), np.int64)
    room = _Room()
    opened = 0
    order = np.argsort(-spans, kind="stable")
    length_of = spans[order]
    runs = np.flatnonzero(np.diff(length_of, prepend=0, append=0))
    for begin, end in zip(runs[:-1].tolist(), runs[1:].tolist(), strict=True):
        length = int(length_of[begin])
        while begin < end:
            free, rows = room.take(length)
            if free == 0:
                free = sequence_length
                rows = np.arange(opened, opened - (begin - end) // (free // length))
                opened += len(rows)
            each = free // length
            placed = min(end - begin, each * len(rows))
            full, more = divmod(placed, each)
            bins[order[begin : begin + placed]] = np.repeat(rows[: full + 1], each)[:placed]
            begin += placed
            room.add(free - each * length, rows[:full])
            if full < len(rows):
                room.add(free - more * length, rows[full : full + 1])
                room.add(free, rows[full + 1 :])
    return bins


class _Room:
    """Rows by their free space."""

    def __init__(self) -> None:
        self._sizes: list[int] = []  # ascending
        self._rows: dict[int, list[I64]] = {}

    def take(self, least: int) -> tuple[int, I64]:
        """Take out the rows with the least free space of at least `least`: that, and they; (0, []) if none has."""
        at = bisect_left(self._sizes, least)
        if at == len(self._sizes):
            return 0, np.empty(0, np.int64)
        size = self._sizes.pop(at)
        return size, np.sort(np.concatenate(self._rows.pop(size)))

    def add(self, size: int, rows: I64) -> None:
        """Put in rows with this much free space; those that are full are forgotten."""
        if size == 0 or len(rows) == 0:
            return
        if size not in self._rows:
            insort(self._sizes, size)
            self._rows[size] = []
        self._rows[size].append(rows)

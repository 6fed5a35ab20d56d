"""Best-fit packing: only documents longer than a row are cut, and each part goes into the fullest row that takes it.

Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (ICML 2024, arXiv 2404.10830): documents longer than T
are cut into spans of T tokens and a rest. Then each span, the longest first, goes into the fullest row that still has
space for it (best-fit decreasing).

The paper keeps a tree over the free space of the rows, and takes one step per span. Here all spans of a length are
placed at once. Take the row with the smallest free space f that takes a span of length l. After it has taken that span,
it still has the least space, if it has any. So it takes f // l spans before the next row is considered. A group of
equally full rows is one operation on arrays. The result is that of the algorithm span by span.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt

from bigtrain.data.build.pack.documents import DocumentGroup

I64 = npt.NDArray[np.int64]


def pack(documents: DocumentGroup, sequence_length: int) -> tuple[I64, I64]:
    """The spans [m] of documents, and the row [m] of each: see `pack_shard.Algorithm`."""
    spans = cut(documents.lengths, sequence_length)
    return spans, assign(spans, sequence_length)


def cut(lengths: I64, sequence_length: int) -> I64:
    """The spans [m] of documents of these lengths [n], in order: spans of T tokens, and a rest of 1 to T."""
    count = -(-lengths // sequence_length)
    spans = np.full(count.sum(), sequence_length, np.int64)
    spans[np.cumsum(count) - 1] = lengths - (count - 1) * sequence_length
    return spans


def assign(spans: I64, sequence_length: int) -> I64:
    """The row [m] of spans of these lengths [m], each in 1..T.

    Of equally full rows, the one that was opened first is taken. Of equally long spans, the first in the stream is
    placed first.
    """
    bins = np.empty(len(spans), np.int64)
    free_rows = _FreeRows()
    opened = 0
    order = np.argsort(-spans, kind="stable")
    length_of = spans[order]
    runs = np.flatnonzero(np.diff(length_of, prepend=0, append=0))
    for begin, end in zip(runs[:-1].tolist(), runs[1:].tolist(), strict=True):
        length = int(length_of[begin])
        while begin < end:
            free, rows = free_rows.take(length)
            if free == 0:
                free = sequence_length
                rows = np.arange(opened, opened - (begin - end) // (free // length))
                opened += len(rows)
            each = free // length
            placed = min(end - begin, each * len(rows))
            full, more = divmod(placed, each)
            bins[order[begin : begin + placed]] = np.repeat(rows[: full + 1], each)[:placed]
            begin += placed
            free_rows.add(free - each * length, rows[:full])
            if full < len(rows):
                free_rows.add(free - more * length, rows[full : full + 1])
                free_rows.add(free, rows[full + 1 :])
    return bins


class _FreeRows:
    """Rows by their free space."""

    def __init__(self) -> None:
        self._sizes: list[int] = []  # ascending
        self._rows: dict[int, list[I64]] = {}

    def take(self, least: int) -> tuple[int, I64]:
        """Remove the rows with the least free space of at least `least`. Returns that space and them; (0, []) if
        none."""
        at = bisect_left(self._sizes, least)
        if at == len(self._sizes):
            return 0, np.empty(0, np.int64)
        size = self._sizes.pop(at)
        return size, np.sort(np.concatenate(self._rows.pop(size)))

    def add(self, size: int, rows: I64) -> None:
        """Add rows with this much free space. Full rows are not kept."""
        if size == 0 or len(rows) == 0:
            return
        if size not in self._rows:
            insort(self._sizes, size)
            self._rows[size] = []
        self._rows[size].append(rows)

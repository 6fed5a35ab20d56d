"""Marks the documents that are duplicates, with their kind and the document that is kept instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bigtrain.data.build.dedup.components import Components
from bigtrain.data.build.dedup.equal_keys import KEYS_AT_ONCE, ROWS_AT_ONCE, Keys, repeated
from bigtrain.data.build.selection import DuplicateMark

Marks = npt.NDArray[np.uint8]
"""[documents]: a `DuplicateMark` for each document of a source."""


@dataclass(frozen=True)
class Marked:
    """The marks of all sources, and the data to find the document that is kept instead of a marked one."""

    marks: list[Marks]
    components: Components | None
    """The components of all documents, if near-duplicates were searched for."""
    hashes: Sequence[Keys]

    def some(self, source: int, mark: DuplicateMark, count: int) -> list[int]:
        """The first `count` documents of a source with this mark, by their numbers in the source."""
        found: list[int] = []
        for start in range(0, len(self.marks[source]), ROWS_AT_ONCE):
            if len(found) < count:
                rows = self.marks[source][start : start + ROWS_AT_ONCE]
                found += (start + np.flatnonzero(rows == mark)).tolist()
        return found[:count]

    def kept_instead(self, source: int, document: int) -> tuple[int, int]:
        """The source, and the document in it, that is kept instead of this one.

        Without components, this is the first document with the same text: the hashes are read up to it.
        """
        if self.components is None:
            return self._first_with(self.hashes[source][document])
        starts = np.cumsum([0, *map(len, self.marks)])
        first = int(self.components.first(starts[source : source + 1] + document)[0])
        home = int(np.searchsorted(starts, first, side="right")) - 1
        return home, first - int(starts[home])

    def _first_with(self, key: npt.NDArray[np.uint64]) -> tuple[int, int]:
        for source, keys in enumerate(self.hashes):
            for start in range(0, len(keys), ROWS_AT_ONCE):
                equal = np.flatnonzero((keys[start : start + ROWS_AT_ONCE] == key).all(axis=1))
                if len(equal):
                    return source, start + int(equal[0])
        raise ValueError("no document has this hash")


def mark_duplicates(
    hashes: Sequence[Keys], bands: Iterable[Sequence[Keys]] | None = None, keys_at_once: int = KEYS_AT_ONCE
) -> Marked:
    """Mark each document of each source for which an earlier one is kept.

    Args:
        hashes: for each source [documents, 2]. Zeros if the filters remove the document.
        bands: near: for each band and each source [documents, 1]. Zeros if the document has no words. Documents with
            equal keys of a band are connected, and the first of each component is kept.
        keys_at_once: number of keys that are sorted at a time. It does not change the result.
    """
    starts = np.cumsum([0, *map(len, hashes)])
    marks = np.zeros(starts[-1], np.uint8)
    components = None if bands is None else Components(len(marks))
    for later, first in repeated(hashes, keys_at_once):
        marks[later] = DuplicateMark.EXACT
        if components is not None:
            components.unite(later, first)
    if bands is not None and components is not None:
        for band in bands:
            for later, first in repeated(band, keys_at_once):
                components.unite(later, first)
        for start in range(0, len(marks), ROWS_AT_ONCE):
            documents = np.arange(start, min(start + ROWS_AT_ONCE, len(marks)))
            near = (components.first(documents) != documents) & (marks[documents] == DuplicateMark.KEPT)
            marks[documents[near]] = DuplicateMark.NEAR
    return Marked(np.split(marks, starts[1:-1]), components, hashes)

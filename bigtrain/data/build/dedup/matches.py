"""Documents with equal keys, over all sources: each partition of the keys is a task.

The keys of all columns, first those of the texts and then those of each band, are thought of as one line:

    hashes 0 ... 2^64 | band 0 0 ... 2^64 | band 1 0 ... 2^64 | ...
    |-- partition 0 --|-- partition 1 --|-- partition 2 --| ...        equal parts

A few documents make one partition of all columns, and many make several of each. Keys are hashes, so partitions are
about equal. A task reads its range of every file of keys, and sorts one column at a time. So its memory is bounded by
the size of a partition, whatever the number of documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bigtrain.data.build.dedup.document_keys import HASHES, band_name
from bigtrain.data.build.dedup.numbering import Documents, read_numbering
from bigtrain.data.build.dedup.pairs import Pairs, distinct, is_new, pairs_of, tables_of_pairs
from bigtrain.data.build.dedup.sorted_tables import About, FileSeries, SortedTables, Table

EQUAL = "equal texts"
"""The table of documents whose text an earlier one has, each with the first that has it."""
_KEYS = 1 << 64


@dataclass(frozen=True)
class MatchKeys:
    """Finds the documents with equal keys in partitions; it is pickled for the workers."""

    files: FileSeries
    """A file for each partition."""
    numbering: str
    """The name of the numbering of the documents."""
    bands: int
    """0 if near-duplicates are not searched for."""

    @property
    def files_with_texts(self) -> FileSeries:
        """The files of the partitions that have keys of texts: the first ones."""
        return replace(self.files, count=-(-self.files.count // (self.bands + 1)))

    def __call__(self, partition: int) -> int:
        """Make the file of a partition, unless it is there. Returns its number of pairs of documents."""
        pairs: int = self.files.make(partition, lambda: self._match(partition))["pairs"]
        return pairs

    def _match(self, partition: int) -> tuple[dict[str, Table], About]:
        found, equal = [], pairs_of([], [])
        for column, low, high in self._ranges(partition):
            pairs = self._repeated(HASHES if column == 0 else band_name(column - 1), low, high)
            if column == 0:
                equal = pairs
            found.append(pairs)
        joined = tables_of_pairs(distinct(np.concatenate(found))) if self.bands else {}
        return {EQUAL: equal} | joined, {"pairs": sum(map(len, found))}

    def _ranges(self, partition: int) -> Iterator[tuple[int, int, int]]:
        """Each column of a partition, and the range [low, high) of its keys there."""
        line = (self.bands + 1) * _KEYS
        start, end = (line * edge // self.files.count for edge in (partition, partition + 1))
        for column in range(start // _KEYS, -(-end // _KEYS)):
            yield column, max(start - column * _KEYS, 0), min(end - column * _KEYS, _KEYS)

    def _repeated(self, table: str, low: int, high: int) -> Pairs:
        """The documents of a range of keys whose key an earlier one has, each with the first that has it."""
        numbering = read_numbering(self.files.folder, self.numbering)
        tables, numbers = [], []
        for file, first in zip(numbering.files, numbering.starts, strict=False):
            rows = SortedTables(self.files.folder, file).between(table, low, high)
            tables.append(rows)
            numbers.append(rows["document"].astype(np.uint64) + np.uint64(first))
        if not tables:
            return pairs_of([], [])
        keys, documents = np.concatenate(tables), np.concatenate(numbers)
        columns = [np.ascontiguousarray(keys[name]) for name in ("key", "rest") if name in (keys.dtype.names or ())]
        order = np.lexsort(columns[::-1])  # stable: of equal keys the first document stays first
        new = is_new([column[order] for column in columns])
        documents = documents[order]
        firsts: Documents = documents[new][np.cumsum(new) - 1]
        return distinct(pairs_of(documents[~new], firsts[~new]))

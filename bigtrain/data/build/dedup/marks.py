"""The documents that are duplicates, with their kind: a file of marks for each group of pieces. The last tasks.

A worker that tokenizes a piece reads the marks of that piece alone. The process that started the build keeps none: it
reads each file once, in order, for the hash that stands for the marks of a source.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigtrain.data.build.dedup.components import StepOfRound
from bigtrain.data.build.dedup.matches import EQUAL
from bigtrain.data.build.dedup.numbering import read_numbering
from bigtrain.data.build.dedup.pairs import PAIRS, Pairs, pairs_between
from bigtrain.data.build.dedup.sorted_tables import About, FileSeries, SortedTables, Table, table_of
from bigtrain.data.build.funnel import EXAMPLES
from bigtrain.data.build.selection import DuplicateMark

MARKS = "marks"
EXAMPLE_KINDS = (DuplicateMark.EXACT, DuplicateMark.NEAR)


@dataclass(frozen=True)
class MarkedGroup:
    """The duplicates of a group of pieces."""

    duplicates: int
    examples: dict[str, list[list[int]]]
    """For each kind, by its name, the first EXAMPLES: a document, and the one that is kept instead, by their numbers
    over all sources."""


@dataclass(frozen=True)
class MarkGroup:
    """Writes the marks of groups of pieces; it is pickled for the workers."""

    files: FileSeries
    """A file for each group of all sources."""
    numbering: str
    """The name of the numbering of the documents."""
    equal: FileSeries
    """Has the pairs of documents with equal texts."""
    joined: StepOfRound | None
    """Has each document with the first of its component. None if near-duplicates are not searched for."""

    def __call__(self, group: int) -> MarkedGroup:
        """Make the file of a group, unless it is there."""
        about = self.files.make(group, lambda: self._mark(group))
        return MarkedGroup(about["duplicates"], about["examples"])

    def _mark(self, group: int) -> tuple[dict[str, Table], About]:
        numbering = read_numbering(self.files.folder, self.numbering)
        start, end = numbering.starts[group : group + 2]
        equal = pairs_between(self.equal, EQUAL, start, end)
        joined = equal if self.joined is None else self._firsts(self.joined, start, end)
        marks = np.full(end - start, DuplicateMark.KEPT, np.uint8)
        for pairs, mark in ((joined, DuplicateMark.NEAR), (equal, DuplicateMark.EXACT)):
            marks[pairs["document"] - np.uint64(start)] = mark
        kinds = marks[joined["document"] - np.uint64(start)]
        examples = {kind.name: joined[kinds == kind][:EXAMPLES].tolist() for kind in EXAMPLE_KINDS}
        pieces = SortedTables(self.files.folder, numbering.files[group]).about["pieces"]
        about = {"pieces": pieces, "duplicates": len(joined), "examples": examples}
        return {MARKS: table_of(("mark", "u1", marks))}, about

    def _firsts(self, joined: StepOfRound, start: int, end: int) -> Pairs:
        """The pairs of the documents [start, end), from the parts that have some of these."""
        parts = [part for part in range(joined.files.count) if _overlap(joined.range_of(part), (start, end))]
        return pairs_between([joined.files[part] for part in parts], PAIRS, start, end)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two ranges overlap or touch, so that an empty one has a part, too."""
    return max(one[0], other[0]) <= min(one[1], other[1])


@dataclass(frozen=True)
class MarksOfPiece:
    """Where the marks of a piece are; it is pickled with the piece."""

    file: SortedTables
    start: int
    end: int

    def __call__(self) -> bytes:
        """A `DuplicateMark` for each document of the piece."""
        return self.file.rows(MARKS, self.start, self.end).tobytes()

"""The search for duplicates over the keys of all sources, as a shuffle: matches, components, marks.

All its files are in DIR/.dedup/JOB, where JOB stands for the keys. JOB/result is written when all marks are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice

import xxhash

from bigtrain.data.build.dedup.components import star_forest
from bigtrain.data.build.dedup.document_keys import SourceKeys
from bigtrain.data.build.dedup.marks import EXAMPLE_KINDS, MARKS, MarkGroup
from bigtrain.data.build.dedup.matches import MatchKeys
from bigtrain.data.build.dedup.numbering import DocumentNumbering
from bigtrain.data.build.dedup.sorted_tables import FileSeries, SortedTables, encode
from bigtrain.data.build.execute import BuildExecutor
from bigtrain.data.build.funnel import EXAMPLES
from bigtrain.data.format.hashing import identity
from bigtrain.data.format.work_folder import WorkFolder

KEYS_AT_ONCE = 1 << 22
"""Keys of a partition, about: some 100 bytes of memory for each. It decides the number of partitions."""
PAIRS_AT_ONCE = 1 << 22
"""Pairs of documents of a range, about: some 100 bytes of memory for each."""


@dataclass(frozen=True)
class MarkedSource:
    """A source whose marks are there."""

    groups: int
    """Files of its marks."""
    digest: str
    """xxh3-64 of its marks, a byte for each document."""
    duplicates: int
    originals: dict[str, str]
    """Of the duplicates that the funnel shows as examples, by their numbers in the source: the document that is kept
    instead, as `SOURCE:FILE:POSITION`."""


@dataclass(frozen=True)
class DuplicateSearch:
    """The search over the keys of all sources, in their order."""

    folder: WorkFolder
    sources: Sequence[SourceKeys]
    bands: int
    """Tables of keys of bands; 0 if near-duplicates are not searched for. Documents with equal keys of a band are
    connected, and the first of each component is kept."""

    @property
    def job(self) -> str:
        """The folder of its files."""
        return identity([source.where for source in self.sources])[:16]

    @property
    def _record(self) -> str:
        return f"{self.job}/result"

    def finished(self) -> list[MarkedSource] | None:
        """The result of an earlier search over the same keys, if all its marks are as they were written."""
        record = SortedTables(self.folder, self._record)
        if not record.is_whole:
            return None
        marked = [MarkedSource(**source) for source in record.about["sources"]]
        return marked if all(file.is_whole for file in self._marks(marked)) else None

    def run(
        self, executor: BuildExecutor, *, keys_at_once: int = KEYS_AT_ONCE, pairs_at_once: int = PAIRS_AT_ONCE
    ) -> list[MarkedSource]:
        """Mark each document of each source for which an earlier one is kept.

        Args:
            executor: runs the tasks.
            keys_at_once: keys of a partition, about. It does not change the result.
            pairs_at_once: pairs of a range of documents, about. It does not change the result.
        """
        names = [source.group_name(index) for source in self.sources for index in range(len(source.documents))]
        counts = [count for source in self.sources for count in source.documents]
        numbering = DocumentNumbering.of(names, counts)
        where = f"{self.job}/numbering.json"
        numbering.write(self.folder, where)
        partitions = _parts(numbering.documents * (self.bands + 1), keys_at_once)
        match = MatchKeys(FileSeries(self.folder, f"{self.job}/matches-of-{partitions}", partitions), where, self.bands)
        pairs = sum(executor.map_in_order(match, range(partitions)))
        parts = _parts(2 * pairs, pairs_at_once)
        joined = None
        if self.bands:
            joined = star_forest(match.files, self.job, documents=numbering.documents, parts=parts, executor=executor)
        mark = MarkGroup(self._files_of_marks(len(names)), where, match.files_with_texts, joined)
        results = executor.map_in_order(mark, range(len(names)))
        marked, first = [], 0
        for source in self.sources:
            found = list(islice(results, len(source.documents)))
            files = [mark.files[first + index] for index in range(len(found))]
            examples = [
                example
                for kind in EXAMPLE_KINDS
                for example in list(chain.from_iterable(group.examples[kind.name] for group in found))[:EXAMPLES]
            ]
            start = numbering.starts[first]
            marked.append(
                MarkedSource(
                    groups=len(found),
                    digest=_digest(files),
                    duplicates=sum(group.duplicates for group in found),
                    originals={str(document - start): self._origin(numbering, kept) for document, kept in examples},
                )
            )
            first += len(found)
        self.folder.write(self._record, encode({}, {"sources": [asdict(source) for source in marked]}))
        return marked

    def marks_of(self, marked: Sequence[MarkedSource], source: int) -> list[SortedTables]:
        """The files of the marks of a source, by its index."""
        first, files = sum(before.groups for before in marked[:source]), self._marks(marked)
        return [files[first + index] for index in range(marked[source].groups)]

    def discard_others(self, marked: Sequence[MarkedSource]) -> None:
        """Remove all files of other searches and other keys, and those between the keys and the marks."""
        files = self._marks(marked)
        kept = {self._record, *(files.name(index) for index in range(files.count))}
        folders = tuple(f"{source.where}/" for source in self.sources)
        for name in self.folder.names():
            if name not in kept and not name.startswith(folders):
                self.folder.remove(name)

    def _marks(self, marked: Sequence[MarkedSource]) -> FileSeries:
        return self._files_of_marks(sum(source.groups for source in marked))

    def _files_of_marks(self, groups: int) -> FileSeries:
        return FileSeries(self.folder, f"{self.job}/marks", groups)

    def _origin(self, numbering: DocumentNumbering, document: int) -> str:
        """`SOURCE:FILE:POSITION` of a document."""
        group, number = numbering.address(document)
        for source in self.sources:
            if group < len(source.documents):
                return source.origin(group, number)
            group -= len(source.documents)
        raise ValueError(f"there is no document {document}")


def _parts(rows: int, at_once: int) -> int:
    return max(1, -(-rows // at_once))


def _digest(files: Sequence[SortedTables]) -> str:
    hasher = xxhash.xxh3_64()
    for file in files:
        hasher.update(file.rows(MARKS).tobytes())
    return hasher.hexdigest()

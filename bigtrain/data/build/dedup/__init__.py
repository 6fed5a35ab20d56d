"""Deduplication: of documents with equal or nearly equal text, the first is kept.

The first is that in the order of the sources in the settings, then in the order of each corpus, over both splits. So a
held-out document is never in a training split too. The texts are compared after cleaning: a document that its filters
(cleaning, decontamination) remove is not the first of any others. It is a shuffle before anything else is built:

    keys          a task per group of pieces: a hash of each text,        document_keys.py, minhash.py
      |             and with `near` MinHash bands, sorted
    matches       a task per partition of the keys: each document         matches.py
      |             with an equal key, and the first that has it
    components    near: tasks per range of documents, until each is       components.py
      |             paired with the first of its component
    marks         a task per group of pieces: a byte per document,        marks.py
                    which the workers read beside the pieces

search.py runs the last three. Tasks hand each other files of sorted tables (sorted_tables.py) in DIR/.dedup, and each
file is made once. So any executor runs them, memory is bounded by a task, and a build that was killed goes on. The keys
and marks of a finished build stay; what is between them goes. The result does not depend on the number of workers or
partitions, or on chance: the same corpora give the same marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from bigtrain.config import DataSettings
from bigtrain.data.build.corpus import Corpus
from bigtrain.data.build.dedup.document_keys import KeysOfGroup, SourceKeys
from bigtrain.data.build.dedup.marks import MarksOfPiece
from bigtrain.data.build.dedup.minhash import MinHash
from bigtrain.data.build.dedup.search import DuplicateSearch, MarkedSource
from bigtrain.data.build.dedup.sorted_tables import SortedTables
from bigtrain.data.build.execute import BuildExecutor
from bigtrain.data.build.filters import Filters
from bigtrain.data.build.selection import DistinctPiece
from bigtrain.data.format.documents import Piece
from bigtrain.data.format.work_folder import WorkFolder


def without_duplicates(
    corpora: Mapping[str, Corpus],
    settings: DataSettings,
    filters: Mapping[str, Filters],
    executor: BuildExecutor,
    report: Callable[[str], None],
) -> dict[str, Corpus]:
    """The corpora of the sources, by name, with their duplicates marked. Their stamps cover the marks."""
    dedup = settings.dedup
    near = MinHash(dedup.ngram, dedup.bands, dedup.rows) if dedup.method == "near" else None
    folder = WorkFolder.at(settings.dir / ".dedup")
    work = [KeysOfGroup(folder, filters[source.name], near) for source in settings.sources]
    keys = [
        SourceKeys.of(folder, source, corpora[source.name], of_source)
        for source, of_source in zip(settings.sources, work, strict=True)
    ]
    search = DuplicateSearch(folder, keys, near.bands if near else 0)
    marked = search.finished()
    if marked is None:
        for source, of_source in zip(keys, work, strict=True):
            source.make(corpora[source.source], of_source, executor, report)
        marked = search.run(executor)
    search.discard_others(marked)
    return {
        source.source: _without(corpora[source.source], found, search.marks_of(marked, index))
        for index, (source, found) in enumerate(zip(keys, marked, strict=True))
    }


def _without(corpus: Corpus, found: MarkedSource, files: list[SortedTables]) -> Corpus:
    """A corpus whose pieces are marked by files of marks, one for each group of them."""
    originals = {int(document): name for document, name in found.originals.items()}

    def marked_pieces() -> Iterator[Piece]:
        pieces, start = corpus.pieces(), 0
        for file in files:
            first = start
            for documents in file.about["pieces"]:
                end = start + documents
                named = {document - start: name for document, name in originals.items() if start <= document < end}
                yield DistinctPiece(next(pieces), MarksOfPiece(file, start - first, end - first), named)
                start = end

    return replace(
        corpus,
        stamp=f"{corpus.stamp}-{found.digest}",
        summary=f"{corpus.summary}, {found.duplicates:,} duplicates",
        pieces=marked_pieces,
    )


__all__ = ["without_duplicates"]

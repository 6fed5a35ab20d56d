"""Deduplication: of documents with equal or nearly equal text, the first is kept.

The first is that in the order of the sources in the settings, then in the order of each corpus, over both splits. So a
held-out document is never in a training split too. The texts are compared after cleaning: a document that its filters
(cleaning, decontamination) remove is not the first of any others. It takes a pass over all sources before anything
else is built:

    keys          a hash of each text, and with `near` MinHash bands     document_keys.py, minhash.py
      |             in DIR/.dedup; the keys of a finished source are kept
    equal keys    sorted in portions, so memory does not grow            equal_keys.py
      |
    components    near: documents joined by a band, and by another       components.py
      |
    marks         a byte per document, beside the pieces of the corpus   marks.py

Memory is one byte per document, 5 with `near`, and a few hundred megabytes. The result does not depend on the number of
workers or on chance: the same corpora give the same marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import xxhash

from bigtrain.config import DataSettings
from bigtrain.data.build.corpus import Corpus
from bigtrain.data.build.dedup.document_keys import DocumentKeys, KeysOfPiece
from bigtrain.data.build.dedup.marks import Marked, Marks, mark_duplicates
from bigtrain.data.build.dedup.minhash import MinHash
from bigtrain.data.build.execute import Executor
from bigtrain.data.build.filters import Filters
from bigtrain.data.build.funnel import EXAMPLES
from bigtrain.data.build.selection import DistinctPiece, DuplicateMark
from bigtrain.data.format.documents import Piece


def without_duplicates(
    corpora: Mapping[str, Corpus],
    settings: DataSettings,
    filters: Mapping[str, Filters],
    executor: Executor,
    report: Callable[[str], None],
) -> dict[str, Corpus]:
    """The corpora of the sources, by name, with their duplicates marked. Their stamps cover the marks."""
    dedup = settings.dedup
    near = MinHash(dedup.ngram, dedup.bands, dedup.rows) if dedup.method == "near" else None
    folder = settings.dir / ".dedup"
    folder.mkdir(exist_ok=True)
    keys = [DocumentKeys(folder, source.name, near.bands if near else 0) for source in settings.sources]
    for source, of_source in zip(settings.sources, keys, strict=True):
        of_source.make(source, corpora[source.name], KeysOfPiece(filters[source.name], near), executor, report)
    bands = ([of_source.band(index) for of_source in keys] for index in range(near.bands)) if near else None
    marked = mark_duplicates([of_source.hashes for of_source in keys], bands)
    originals = _originals(marked, keys)
    return {
        of_source.source: _marked(corpora[of_source.source], of_source.pieces, marked.marks[index], originals[index])
        for index, of_source in enumerate(keys)
    }


def _originals(marked: Marked, keys: Sequence[DocumentKeys]) -> list[dict[int, str]]:
    """For each source, the duplicates that the funnel shows as examples, and the names of those kept instead."""
    instead = [
        {
            document: marked.kept_instead(source, document)
            for mark in (DuplicateMark.EXACT, DuplicateMark.NEAR)
            for document in marked.some(source, mark, EXAMPLES)
        }
        for source in range(len(keys))
    ]
    names = [
        of_source.origins(kept for found in instead for home, kept in found.values() if home == source)
        for source, of_source in enumerate(keys)
    ]
    return [{document: names[home][kept] for document, (home, kept) in found.items()} for found in instead]


def _marked(corpus: Corpus, pieces: Sequence[int], marks: Marks, originals: Mapping[int, str]) -> Corpus:
    def marked_pieces() -> Iterator[Piece]:
        start = 0
        for piece, documents in zip(corpus.pieces(), pieces, strict=True):
            end = start + documents
            named = {document - start: name for document, name in originals.items() if start <= document < end}
            yield DistinctPiece(piece, marks[start:end].tobytes(), named)
            start = end

    return replace(
        corpus,
        stamp=f"{corpus.stamp}-{xxhash.xxh3_64_hexdigest(marks.tobytes())}",
        summary=f"{corpus.summary}, {(marks != DuplicateMark.KEPT).sum():,} duplicates",
        pieces=marked_pieces,
    )


__all__ = ["mark_duplicates", "without_duplicates"]

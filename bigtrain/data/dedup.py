"""Exact deduplication: of documents with the same text, after cleaning, the first is kept.

"First" goes by the order of the sources in the settings, then by the order of each corpus, over both splits: so a
held-out document never stands in a training split too. It takes a pass over all sources before anything else is made:

    DIR/.dedup/<source>.hashes   16 bytes for each document of the corpus; zeros for one that its rules remove
    DIR/.dedup/<source>.json     what they were made from, and how many documents each piece has; makes .hashes valid

The hashes of all sources are then sorted in portions, so memory does not grow with them: a byte a document, and a few
hundred megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from bigtrain.config.cleaning import CleanStep
from bigtrain.config.data_settings import DataSettings, SourceSettings
from bigtrain.data.clean import Verdict
from bigtrain.data.corpus import Corpus
from bigtrain.data.documents import ID_BYTES, Piece
from bigtrain.data.files import write_atomically
from bigtrain.data.layout import Record
from bigtrain.data.selection import DistinctPiece, clean_document
from bigtrain.data.workers import Workers

Hashes = npt.NDArray[np.uint64]
"""[documents, 2]: the two halves of each document's hash."""

REMOVED = bytes(ID_BYTES)
HASHES_AT_ONCE = 1 << 23
ROWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class HashPiece:
    """Reads and cleans one piece; this object travels to the worker processes."""

    rules: tuple[CleanStep, ...]

    def __call__(self, piece: Piece) -> list[bytes]:
        """A hash for each document of the piece."""
        results = (clean_document(document, self.rules) for document in piece.documents())
        return [REMOVED if isinstance(result, Verdict) else result.content_hash for result in results]


def without_duplicates(
    corpora: Mapping[str, Corpus], settings: DataSettings, workers: Workers, report: Callable[[str], None]
) -> dict[str, Corpus]:
    """The corpora of the sources, by name, with the duplicates in them marked; their stamps cover the marks."""
    folder = settings.dir / ".dedup"
    folder.mkdir(exist_ok=True)
    for source in settings.sources:
        _hash_documents(folder, source, corpora[source.name], workers, report)
    names = [source.name for source in settings.sources]
    marks = mark_duplicates([_read_hashes(folder, name) for name in names])
    return {
        name: _marked(corpora[name], _record(folder, name)["pieces"], marks_of_source)
        for name, marks_of_source in zip(names, marks, strict=True)
    }


def mark_duplicates(sources: Sequence[Hashes], hashes_at_once: int = HASHES_AT_ONCE) -> list[npt.NDArray[np.bool_]]:
    """For each document of each source, whether an earlier one has the same hash; a hash of zeros is nobody's.

    The hashes are sorted in portions of about `hashes_at_once`, divided by their value.
    """
    starts = np.cumsum([0, *map(len, sources)])
    marks = np.zeros(starts[-1], np.bool_)
    portions = -(-len(marks) // hashes_at_once)
    for portion in range(portions):
        hashes, positions = _portion(sources, starts, portion, portions)
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: of equal hashes the first position stays first
        hashes = hashes[order]
        again = (hashes[1:] == hashes[:-1]).all(axis=1)
        marks[positions[order[1:][again]]] = True
    return np.split(marks, starts[1:-1])


def _portion(
    sources: Sequence[Hashes], starts: npt.NDArray[np.int64], portion: int, portions: int
) -> tuple[Hashes, npt.NDArray[np.int64]]:
    hashes, positions = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
    for source, start in zip(sources, starts, strict=False):
        for row in range(0, len(source), ROWS_AT_ONCE):
            rows = np.asarray(source[row : row + ROWS_AT_ONCE])
            chosen = np.flatnonzero((rows[:, 0] % np.uint64(portions) == portion) & rows.any(axis=1))
            hashes.append(rows[chosen])
            positions.append(start + row + chosen)
    return np.concatenate(hashes), np.concatenate(positions)


def _hash_documents(
    folder: Path, source: SourceSettings, corpus: Corpus, workers: Workers, report: Callable[[str], None]
) -> None:
    made_from = {"source": source.model_dump(mode="json", exclude={"weight"}), "corpus": corpus.stamp}
    try:
        if _record(folder, source.name)["made_from"] == made_from:
            return
    except FileNotFoundError:
        pass
    report(f"{source.name}: looking for duplicates")
    (folder / f"{source.name}.json").unlink(missing_ok=True)
    pieces: list[int] = []

    def write_hashes(file: BinaryIO) -> None:
        for hashes in workers.map_in_order(HashPiece(source.clean), corpus.pieces()):
            file.write(b"".join(hashes))
            pieces.append(len(hashes))

    write_atomically(folder / f"{source.name}.hashes", write_hashes)
    record = json.dumps({"made_from": made_from, "pieces": pieces}).encode()
    write_atomically(folder / f"{source.name}.json", lambda file: file.write(record))


def _record(folder: Path, name: str) -> Record:
    record: Record = json.loads((folder / f"{name}.json").read_bytes())
    return record


def _read_hashes(folder: Path, name: str) -> Hashes:
    file = folder / f"{name}.hashes"
    if not file.stat().st_size:
        return np.empty((0, 2), np.uint64)
    return np.memmap(file, "<u8", "r").reshape(-1, 2)


def _marked(corpus: Corpus, pieces: Sequence[int], marks: npt.NDArray[np.bool_]) -> Corpus:
    def marked_pieces() -> Iterator[Piece]:
        start = 0
        for piece, documents in zip(corpus.pieces(), pieces, strict=True):
            yield DistinctPiece(piece, marks[start : start + documents].tobytes())
            start += documents

    return replace(
        corpus,
        stamp=f"{corpus.stamp}-{xxhash.xxh3_64_hexdigest(marks.tobytes())}",
        summary=f"{corpus.summary}, {marks.sum():,} duplicates",
        pieces=marked_pieces,
    )

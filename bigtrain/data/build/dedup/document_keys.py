"""The keys of every document of a source, on disk. The worker processes make them in one pass over the source.

DIR/.dedup/<source>.hashes    16 bytes per document: the hash of its text; zeros if its filters remove it
DIR/.dedup/<source>.band-00   near: a file per band, 8 bytes per document; zeros also for a document without words
DIR/.dedup/<source>.origins   a line per piece: [file, first position, documents] for each run of documents
DIR/.dedup/<source>.json      what the keys were made from, and the number of documents of each piece; written last
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from bigtrain.base import (
    STRICT,
    BigtrainError,
    as_record,
    commit_file,
    open_temporary,
    parse_json,
    read_json,
    write_atomically,
)
from bigtrain.config import SourceSettings
from bigtrain.data.build.clean import Rejection
from bigtrain.data.build.corpus import Corpus
from bigtrain.data.build.dedup.equal_keys import Keys
from bigtrain.data.build.dedup.minhash import NO_KEY, MinHash
from bigtrain.data.build.filters import Filters
from bigtrain.data.build.workers import Workers, note
from bigtrain.data.format.documents import ID_BYTES, Document, Piece
from bigtrain.data.format.layout import what_documents

LARGEST = 1 << 30
"""Bytes of a source's record. One of 100 million pieces has some 500 million."""
REMOVED = bytes(ID_BYTES)


@dataclass(frozen=True)
class KeysOfPiece:
    """Reads and filters one piece; it is pickled for the worker processes."""

    filters: Filters
    near: MinHash | None

    def __call__(self, piece: Piece) -> tuple[int, list[bytes]]:
        """The number of documents of the piece, and the bytes to append to each file of the source."""
        documents = list(piece.documents())
        results = []
        for document in documents:
            note(document)
            results.append(self.filters(document))
        hashes = b"".join(REMOVED if isinstance(result, Rejection) else result.content_hash for result in results)
        bands = [] if self.near is None else [band.tobytes() for band in _bands(results, self.near)]
        return len(documents), [hashes, *bands, json.dumps(_runs(documents)).encode() + b"\n"]


def _bands(results: Sequence[Document | Rejection], near: MinHash) -> Keys:
    """[bands, documents]. Documents of token ids have no words, so only equal ones are found."""
    none = [NO_KEY] * near.bands
    keys = [
        none if isinstance(result, Rejection) or result.ids is not None else near.keys(result.text)
        for result in results
    ]
    return np.array(keys, "<u8").reshape(-1, near.bands).T


def _runs(documents: Iterable[Document]) -> list[tuple[str, int, int]]:
    runs: list[tuple[str, int, int]] = []
    for document in documents:
        if runs and (document.file, document.position) == (runs[-1][0], runs[-1][1] + runs[-1][2]):
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((document.file, document.position, 1))
    return runs


@dataclass(frozen=True)
class DocumentKeys:
    """The keys of one source, in `folder`. They are read through memory maps."""

    folder: Path
    source: str
    bands: int
    """0 if near-duplicates are not searched for."""

    @property
    def hashes(self) -> Keys:
        """[documents, 2]."""
        return _map(self._hashes, 2)

    def band(self, index: int) -> Keys:
        """[documents, 1]."""
        return _map(self._bands[index], 1)

    @property
    def pieces(self) -> list[int]:
        """The number of documents of each piece."""
        return self._read_record()["pieces"]

    def origins(self, documents: Iterable[int]) -> dict[int, str]:
        """`SOURCE:FILE:POSITION` of some documents, given by their numbers in the source."""
        wanted, names, start = sorted(set(documents), reverse=True), {}, 0
        with self._origins.open("rb") as lines:
            for line in lines:
                if not wanted:
                    break
                for file, position, count in as_record(_Runs, parse_json(line, self._origins), self._origins):
                    while wanted and wanted[-1] < start + count:
                        document = wanted.pop()
                        names[document] = f"{self.source}:{file}:{position + document - start}"
                    start += count
        return names

    def make(
        self,
        source: SourceSettings,
        corpus: Corpus,
        work: KeysOfPiece,
        workers: Workers,
        report: Callable[[str], None],
    ) -> None:
        """Read the source and write its keys, unless they exist."""
        made_from = {
            "source": what_documents(source),
            "corpus": corpus.stamp,
            "filters": work.filters.identity,
            "near": work.near and [work.near.ngram, work.near.bands, work.near.rows],
            "files": [path.suffix for path in self._files],
            "pieces": 2,  # since long groups of rows are several pieces
        }
        try:
            record = self._read_record()
            if record["made_from"] == made_from and self._are_whole(sum(record["pieces"])):
                return
        except (FileNotFoundError, BigtrainError):
            pass  # missing or damaged: they are made again
        report(f"{self.source}: looking for duplicates")
        self._record.unlink(missing_ok=True)
        pieces: list[int] = []
        with ExitStack() as stack:
            files = [stack.enter_context(open_temporary(path)) for path in self._files]
            for count, parts in workers.map_in_order(work, corpus.pieces()):
                pieces.append(count)
                for file, part in zip(files, parts, strict=True):
                    file.write(part)
            for file, path in zip(files, self._files, strict=True):
                commit_file(file, path)
        write_atomically(self._record, json.dumps({"made_from": made_from, "pieces": pieces}).encode())

    def _read_record(self) -> _KeysRecord:
        return as_record(_KeysRecord, read_json(self._record, LARGEST), self._record)

    def _are_whole(self, documents: int) -> bool:
        """Whether the columns have an entry for each document."""
        columns = [(self._hashes, ID_BYTES), *((band, 8) for band in self._bands)]
        return self._origins.is_file() and all(
            file.is_file() and file.stat().st_size == width * documents for file, width in columns
        )

    @property
    def _record(self) -> Path:
        return self.folder / f"{self.source}.json"

    @property
    def _hashes(self) -> Path:
        return self.folder / f"{self.source}.hashes"

    @property
    def _bands(self) -> list[Path]:
        return [self.folder / f"{self.source}.band-{index:02d}" for index in range(self.bands)]

    @property
    def _origins(self) -> Path:
        return self.folder / f"{self.source}.origins"

    @property
    def _files(self) -> list[Path]:
        """In the order of what KeysOfPiece gives."""
        return [self._hashes, *self._bands, self._origins]


class _KeysRecord(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    made_from: dict[str, Any]
    pieces: list[Annotated[int, Field(ge=0, lt=2**63)]]


_Runs = list[tuple[str, int, Annotated[int, Field(ge=1, lt=2**63)]]]
"""The documents of a piece: file, position of the first, and how many follow each other."""


def _map(file: Path, parts: int) -> Keys:
    if not file.stat().st_size:
        return np.empty((0, parts), np.uint64)
    return np.memmap(file, "<u8", "r").reshape(-1, parts)

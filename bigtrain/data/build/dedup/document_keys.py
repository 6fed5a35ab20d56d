"""The keys of every document of a source, in a file for each group of its pieces. The first tasks of the shuffle.

    SOURCE/ID/000000.keys   hashes     key and rest (16 bytes) of the text of each document that its filters keep
                            band-00    near: 8 bytes for each document with words, a table per band
                            origins    [file, first position, documents] of each run of documents, a line for each piece
    SOURCE/ID/source        says the number of documents of each of these files; written last

All are in DIR/.dedup. ID stands for what the keys were made from, so keys of other settings are never mixed with these.
A table is sorted by its key, and names a document by its number in the group.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from bigtrain.base import as_record, parse_json
from bigtrain.config import SourceSettings
from bigtrain.data.build.clean import Rejection
from bigtrain.data.build.corpus import Corpus
from bigtrain.data.build.dedup.minhash import NO_KEY, MinHash
from bigtrain.data.build.dedup.sorted_tables import About, SortedTables, Table, encode, made, table_of
from bigtrain.data.build.execute import BuildExecutor, note, noted_reading
from bigtrain.data.build.filters import Filters
from bigtrain.data.format.documents import ID_BYTES, Document, Piece
from bigtrain.data.format.hashing import identity
from bigtrain.data.format.layout import what_documents
from bigtrain.data.format.work_folder import WorkFolder

PIECES_AT_ONCE = 8
"""Pieces of a group, about as many megabytes: half a second of MinHash, so that a small corpus keeps workers busy."""
MOST_GROUPS = 1 << 13
"""Groups of a source: a large one has larger groups, because each partition reads a range of every file."""
REMOVED = bytes(ID_BYTES)
HASHES = "hashes"
ORIGINS = "origins"


@dataclass(frozen=True)
class KeysOfGroup:
    """Reads and filters the pieces of a group, and writes their keys; it is pickled for the workers."""

    folder: WorkFolder
    filters: Filters
    near: MinHash | None

    def __call__(self, group: tuple[str, list[Piece]]) -> list[int]:
        """Make the file of this name for these pieces, unless it is there. Returns the documents of each piece."""
        name, pieces = group
        counts: list[int] = made(self.folder, name, lambda: self._keys(pieces))["pieces"]
        return counts

    def _keys(self, pieces: Iterable[Piece]) -> tuple[dict[str, Table], About]:
        counts: list[int] = []
        hashes: list[bytes] = []
        bands = [np.empty((0, self._bands), "<u8")]
        origins: list[bytes] = []
        for piece in pieces:
            documents = list(noted_reading(piece.documents()))
            results = []
            for document in documents:
                note(document)
                results.append(self._keys_of(self.filters(document)))
            counts.append(len(documents))
            hashes += [content_hash for content_hash, _ in results]
            bands.append(np.array([keys for _, keys in results], "<u8").reshape(len(results), self._bands))
            origins.append(json.dumps(_runs(documents)).encode() + b"\n")
        tables = tables_of_keys(np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2), np.concatenate(bands))
        lines = np.frombuffer(b"".join(origins), np.uint8)
        return tables | {ORIGINS: table_of(("byte", "u1", lines))}, {"pieces": counts}

    def _keys_of(self, result: Document | Rejection) -> tuple[bytes, list[int]]:
        """Zeros for a document that is removed, and in the bands for one of token ids: these have no words."""
        if isinstance(result, Rejection):
            return REMOVED, [NO_KEY] * self._bands
        if self.near is None or result.ids is not None:
            return result.content_hash, [NO_KEY] * self._bands
        return result.content_hash, self.near.keys(result.text)

    @property
    def _bands(self) -> int:
        return self.near.bands if self.near else 0


def tables_of_keys(hashes: npt.NDArray[np.uint64], bands: npt.NDArray[np.uint64]) -> dict[str, Table]:
    """The tables of the keys of some documents.

    Args:
        hashes: [documents, 2], u64. Zeros for a document that is removed.
        bands: [documents, bands], u64. Zero for a document without a key.
    """
    kept = np.flatnonzero(hashes.any(axis=1))
    order = kept[np.argsort(hashes[kept, 0], kind="stable")]  # of equal keys the first document stays first
    parts = ("key", "<u8", hashes[order, 0]), ("rest", "<u8", hashes[order, 1])
    tables = {HASHES: table_of(*parts, ("document", "<u4", order))}
    for index, keys in enumerate(bands.T):
        kept = np.flatnonzero(keys)
        order = kept[np.argsort(keys[kept], kind="stable")]
        tables[band_name(index)] = table_of(("key", "<u8", keys[order]), ("document", "<u4", order))
    return tables


def band_name(index: int) -> str:
    """The name of the table of a band."""
    return f"band-{index:02d}"


def _runs(documents: Iterable[Document]) -> list[tuple[str, int, int]]:
    runs: list[tuple[str, int, int]] = []
    for document in documents:
        if runs and (document.file, document.position) == (runs[-1][0], runs[-1][1] + runs[-1][2]):
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((document.file, document.position, 1))
    return runs


@dataclass(frozen=True)
class SourceKeys:
    """The keys of one source."""

    folder: WorkFolder
    source: str
    where: str
    """The folder of its files, below `folder`."""

    @classmethod
    def of(cls, folder: WorkFolder, source: SourceSettings, corpus: Corpus, work: KeysOfGroup) -> SourceKeys:
        """Those of a source in the state of its corpus, which need not be made yet."""
        made_from = {
            "source": what_documents(source),
            "corpus": corpus.stamp,
            "filters": work.filters.identity,
            "near": work.near and [work.near.ngram, work.near.bands, work.near.rows],
            "format": 3,  # of these files: 2 had one for all pieces
        }
        return cls(folder, source.name, f"{source.name}/{identity(made_from)[:16]}")

    def group_name(self, index: int) -> str:
        """The file of a group."""
        return f"{self.where}/{index:06d}.keys"

    @cached_property
    def documents(self) -> list[int]:
        """The documents of each group. The keys are made."""
        counts: list[int] = self._record.about["documents"]
        return counts

    @property
    def _record(self) -> SortedTables:
        return SortedTables(self.folder, self.record_name)

    @property
    def record_name(self) -> str:
        """The file that is written last."""
        return f"{self.where}/source"

    def make(self, corpus: Corpus, work: KeysOfGroup, executor: BuildExecutor, report: Callable[[str], None]) -> None:
        """Read the source and write its keys, unless they exist and are whole."""
        if self._is_whole(executor):
            return
        report(f"{self.source}: looking for duplicates")
        groups = ((self.group_name(index), pieces) for index, pieces in enumerate(groups_of(corpus)))
        documents = [sum(counts) for counts in executor.map_in_order(work, groups)]
        self.folder.write(self.record_name, encode({}, {"documents": documents}))
        vars(self).pop("documents", None)

    def _is_whole(self, executor: BuildExecutor) -> bool:
        if not self._record.is_whole:
            return False
        names = (self.group_name(index) for index in range(len(self.documents)))
        return all(executor.map_in_order(IsWhole(self.folder), names))

    def origin(self, group: int, document: int) -> str:
        """`SOURCE:FILE:POSITION` of a document of a group, given by its number in it."""
        name, start = self.group_name(group), 0
        for line in SortedTables(self.folder, name).rows(ORIGINS).tobytes().splitlines():
            for file, position, count in as_record(_Runs, parse_json(line, name), name):
                if document < start + count:
                    return f"{self.source}:{file}:{position + document - start}"
                start += count
        raise ValueError(f"{name} has no document {document}")


@dataclass(frozen=True)
class IsWhole:
    """Whether files of sorted tables are as they were written; it is pickled for the workers."""

    folder: WorkFolder

    def __call__(self, name: str) -> bool:
        """Read one file, and compare its checksum."""
        return SortedTables(self.folder, name).is_whole


def groups_of(corpus: Corpus) -> Iterator[list[Piece]]:
    """The pieces of a corpus in groups. They do not depend on the number of workers, so another number goes on."""
    group: list[Piece] = []
    extent, least = 0, (corpus.extent or 0) / MOST_GROUPS
    for piece in corpus.pieces():
        group.append(piece)
        extent += piece.extent
        if len(group) >= PIECES_AT_ONCE and extent >= least:
            yield group
            group, extent = [], 0
    if group:
        yield group


_Runs = list[tuple[str, int, Annotated[int, Field(ge=1, lt=2**63)]]]
"""The documents of a piece: file, position of the first, and how many follow each other."""

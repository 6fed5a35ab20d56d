r"""Indexes of a dataset by document and by file: optional, beside the shards, and useful from 10^8 documents on.

    documents.index   magic b"btidx\0\0\1", dataset id (16 bytes), n (u64), then, in the order of the keys,
                      key u64[n], the first 8 bytes of an id, and place u64[n], shard << 32 | document in the shard
    files.index       the same with magic b"btfil\0\0\1", for each file of each shard: key, the xxh3-64 of its name,
                      and place, shard << 32 | file in the shard

They are hints: the id or the name of each result is compared, and the index of another dataset is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from bigtrain.base import BigtrainError, read_regular, write_atomically
from bigtrain.data.format.manifest import MANIFEST
from bigtrain.data.format.mapping import map_file
from bigtrain.data.format.shards import DocumentColumns
from bigtrain.data.store.store import Dataset

DOCUMENTS_AT_ONCE = 1 << 24
ROWS_AT_ONCE = 1 << 22

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


def id_halves(ids: npt.NDArray[np.void]) -> U64:
    """A column of ids [n] as numbers [n, 2], which are fast to compare."""
    return ids.view("<u8").reshape(-1, 2)


def _keys_of_documents(columns: DocumentColumns) -> U64:
    return id_halves(columns.id)[:, 0]


def _keys_of_files(columns: DocumentColumns) -> U64:
    names, start, keys = bytes(columns.names), 0, []
    for end in columns.name_end.tolist():
        keys.append(xxhash.xxh3_64_intdigest(names[start:end]))
        start = end
    return np.array(keys, np.uint64)


@dataclass(frozen=True)
class IndexKind:
    """What an index has an entry for."""

    name: str
    """Of its file."""
    magic: bytes
    keys: Callable[[DocumentColumns], U64]
    """The keys of the entries of a shard, in their order there."""

    def header(self, dataset: Dataset, entries: int) -> bytes:
        """The start of the file."""
        return self.magic + bytes.fromhex(dataset.dataset_id) + np.array([entries], "<u8").tobytes()


DOCUMENTS = IndexKind("documents.index", b"btidx\0\0\1", _keys_of_documents)
FILES = IndexKind("files.index", b"btfil\0\0\1", _keys_of_files)
KINDS = (DOCUMENTS, FILES)
HEADER_BYTES = 32


def index_datasets(directory: Path) -> list[Path]:
    """Write the indexes of every dataset at or below a folder. Returns their paths.

    Raises:
        BigtrainError: there is no dataset, or one was changed after it was written.
    """
    folders = sorted(path.parent for path in directory.rglob(MANIFEST))
    if not folders:
        raise BigtrainError(
            f"there is no dataset in {directory}",
            wanted=f"a folder with a {MANIFEST} in it or below it",
            fix="check the path, or build the data first: bigtrain data build CONFIG",
        )
    return [write_index(dataset, kind) for folder in folders for dataset in [Dataset(folder)] for kind in KINDS]


def write_index(dataset: Dataset, kind: IndexKind = DOCUMENTS, documents_at_once: int = DOCUMENTS_AT_ONCE) -> Path:
    """Write an index of a dataset. Returns its path.

    The range of the keys is divided into portions of at most about `documents_at_once`: keys are hashes, so the
    portions are equal in size. The keys are read twice: to count the portions, and to write each entry into its
    portion of the file. Then each portion is sorted in the file. So memory holds one portion, 32 bytes per entry.
    """
    bits = max(0, (dataset.summary.documents - 1) // documents_at_once).bit_length()
    sizes = np.zeros(1 << bits, np.int64)
    for keys, _ in _entries(dataset, kind):
        sizes += np.bincount(_portions(keys, bits), minlength=len(sizes))

    def write(file: BinaryIO) -> None:
        file.write(kind.header(dataset, int(sizes.sum())))
        _lay(file, _entries(dataset, kind), sizes, bits)
        file.flush()
        with Path(file.name).open("rb") as laid:
            _sort(laid, file, sizes)

    path = dataset.directory / kind.name
    write_atomically(path, write)
    return path


def _lay(file: BinaryIO, all_entries: Iterator[tuple[U64, U64]], sizes: I64, bits: int) -> None:
    """Write all entries into their portions, in the order of the shards."""
    starts = np.cumsum(sizes) - sizes
    for entries in all_entries:
        portions = _portions(entries[0], bits)
        order = np.argsort(portions, kind="stable")
        counts = np.bincount(portions, minlength=len(sizes))
        for portion, chosen in enumerate(np.split(order, np.cumsum(counts)[:-1])):
            for column, values in enumerate(entries):
                file.seek(_offset(sizes, column, starts[portion]))
                file.write(values[chosen].astype("<u8", copy=False).data)
        starts += counts


def _sort(laid: BinaryIO, file: BinaryIO, sizes: I64) -> None:
    """Sort each portion in its place; of equal keys the first entry stays first."""
    for start, size in zip(np.cumsum(sizes) - sizes, sizes.tolist(), strict=True):
        columns = []
        for column in range(2):
            laid.seek(_offset(sizes, column, start))
            columns.append(np.fromfile(laid, "<u8", size))
        order = np.argsort(columns[0], kind="stable")
        for column, values in enumerate(columns):
            file.seek(_offset(sizes, column, start))
            file.write(values[order].data)


def _offset(sizes: I64, column: int, entry: int) -> int:
    """Offset of an entry of a column in the file, in bytes."""
    return HEADER_BYTES + 8 * (column * int(sizes.sum()) + int(entry))


def _entries(dataset: Dataset, kind: IndexKind) -> Iterator[tuple[U64, U64]]:
    """Keys and places of all entries, in their order, about ROWS_AT_ONCE at a time."""
    keys: list[U64] = []
    places: list[U64] = []
    for shard, record in enumerate(dataset.manifest.shards):
        path = dataset.fetched(record.files[1])
        # Not mapped, since a mapping would stay.
        columns = DocumentColumns.parse(memoryview(read_regular(path, record.files[1].size)), path)
        columns.require(documents=record.documents, tokens=record.tokens, path=path)
        own = kind.keys(columns)
        for start in range(0, len(own), ROWS_AT_ONCE):
            keys.append(own[start : start + ROWS_AT_ONCE].copy())
            places.append(np.arange(start, start + len(keys[-1]), dtype=np.uint64) + np.uint64(shard << 32))
            if sum(map(len, keys)) >= ROWS_AT_ONCE:
                yield np.concatenate(keys), np.concatenate(places)
                keys, places = [], []
    if keys:
        yield np.concatenate(keys), np.concatenate(places)


def _portions(keys: U64, bits: int) -> I64:
    """The portion of each key: its highest bits."""
    return (keys >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(keys), np.int64)


def look_up(dataset: Dataset, document_id: bytes) -> list[tuple[int, int]] | None:
    """The documents with an id (16 bytes), as (shard, document in it); None without an index."""
    places = _places(dataset, DOCUMENTS, np.frombuffer(document_id, "<u8")[0])
    if places is None:
        return None
    documents = dataset.summary.documents_of
    there = [(s, n) for s, n in places if s < len(documents) and n < documents[s]]  # the index may be another's
    return [(s, n) for s, n in there if dataset.shards[s].documents.id[n].tobytes() == document_id]


def shards_with_file(dataset: Dataset, name: bytes) -> list[int] | None:
    """The shards that may have documents from a file, in order; None without an index."""
    places = _places(dataset, FILES, np.uint64(xxhash.xxh3_64_intdigest(name)))
    return None if places is None else sorted({shard for shard, _ in places if shard < len(dataset.shards)})


def _places(dataset: Dataset, kind: IndexKind, key: np.uint64) -> list[tuple[int, int]] | None:
    """The entries with a key, as (shard, number in it); None without an index of this dataset."""
    path = dataset.directory / kind.name
    if not path.is_file() or (size := path.stat().st_size) < HEADER_BYTES:
        return None
    data, entries = map_file(path, at_random=True), (size - HEADER_BYTES) // 16
    if size % 16 or data[:HEADER_BYTES] != kind.header(dataset, entries):
        return None
    columns: U64 = np.frombuffer(data, "<u8", offset=HEADER_BYTES).reshape(2, entries)
    first, last = columns[0].searchsorted(key, "left"), columns[0].searchsorted(key, "right")
    return [(int(place) >> 32, int(place) & 0xFFFFFFFF) for place in columns[1, first:last]]

r"""An index of a dataset's documents by id. It is optional, beside the shards, and useful from 10^8 documents on.

    documents.index   magic b"btidx\0\0\1", dataset id (16 bytes), n (u64), then, in the order of the keys,
                      key u64[n], the first 8 bytes of an id, and place u64[n], shard << 32 | document in the shard

It is a hint: the id of each result is compared, and the index of another dataset is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from bigtrain.base import BigtrainError, read_regular, write_atomically
from bigtrain.data.format.manifest import MANIFEST
from bigtrain.data.format.mapping import map_file
from bigtrain.data.format.shards import DocumentColumns
from bigtrain.data.store.store import Dataset

INDEX = "documents.index"
DOCUMENTS_AT_ONCE = 1 << 24
ROWS_AT_ONCE = 1 << 22
_MAGIC = b"btidx\0\0\1"

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


def index_datasets(directory: Path) -> list[Path]:
    """Write the index of every dataset at or below a folder. Returns their paths.

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
    return [write_index(Dataset(folder)) for folder in folders]


def write_index(dataset: Dataset, documents_at_once: int = DOCUMENTS_AT_ONCE) -> Path:
    """Write the index of a dataset. Returns its path.

    The range of the keys is divided into portions of about `documents_at_once`: ids are hashes, so the portions are
    equal in size. The ids are read twice: to count the portions, and to write each entry into its portion of the file.
    Then each portion is sorted in the file. So memory holds one portion, 32 bytes per document.
    """
    bits = max(0, (dataset.summary.documents - 1) // documents_at_once).bit_length()
    sizes = np.zeros(1 << bits, np.int64)
    for keys, _ in _entries(dataset):
        sizes += np.bincount(_portions(keys, bits), minlength=len(sizes))

    def write(file: BinaryIO) -> None:
        file.write(_header(dataset))
        _lay(file, dataset, sizes, bits)
        file.flush()
        with Path(file.name).open("rb") as laid:
            _sort(laid, file, dataset, sizes)

    path = dataset.directory / INDEX
    write_atomically(path, write)
    return path


def _lay(file: BinaryIO, dataset: Dataset, sizes: I64, bits: int) -> None:
    """Write all entries into their portions, in the order of the documents."""
    starts = np.cumsum(sizes) - sizes
    for entries in _entries(dataset):
        portions = _portions(entries[0], bits)
        order = np.argsort(portions, kind="stable")
        counts = np.bincount(portions, minlength=len(sizes))
        for portion, chosen in enumerate(np.split(order, np.cumsum(counts)[:-1])):
            for column, values in enumerate(entries):
                file.seek(_place(dataset, column, starts[portion]))
                file.write(values[chosen].astype("<u8", copy=False).data)
        starts += counts


def _sort(laid: BinaryIO, file: BinaryIO, dataset: Dataset, sizes: I64) -> None:
    """Sort each portion in its place; of equal keys the first document stays first."""
    for start, size in zip(np.cumsum(sizes) - sizes, sizes.tolist(), strict=True):
        columns = []
        for column in range(2):
            laid.seek(_place(dataset, column, start))
            columns.append(np.fromfile(laid, "<u8", size))
        order = np.argsort(columns[0], kind="stable")
        for column, values in enumerate(columns):
            file.seek(_place(dataset, column, start))
            file.write(values[order].data)


def _place(dataset: Dataset, column: int, entry: int) -> int:
    """Offset of an entry of a column in the file, in bytes."""
    return len(_header(dataset)) + 8 * (column * dataset.summary.documents + int(entry))


def _entries(dataset: Dataset) -> Iterator[tuple[U64, U64]]:
    """Keys and places of all documents, in their order, about ROWS_AT_ONCE at a time."""
    keys: list[U64] = []
    places: list[U64] = []
    for shard, record in enumerate(dataset.manifest.shards):
        path = dataset.fetched(record.files[1])
        # Not mapped, since a mapping would stay.
        columns = DocumentColumns.parse(memoryview(read_regular(path, record.files[1].size)), path)
        columns.require(documents=record.documents, tokens=record.tokens, path=path)
        own = id_halves(columns.id)[:, 0]
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
    path, header = dataset.directory / INDEX, _header(dataset)
    count = dataset.summary.documents
    if not path.is_file() or path.stat().st_size != len(header) + 16 * count:
        return None
    data = map_file(path, at_random=True)
    if data[: len(header)] != header:
        return None
    columns: U64 = np.frombuffer(data, "<u8", offset=len(header)).reshape(2, count)
    wanted = np.frombuffer(document_id, "<u8")
    first, last = columns[0].searchsorted(wanted[0], "left"), columns[0].searchsorted(wanted[0], "right")
    found = [(int(place) >> 32, int(place) & 0xFFFFFFFF) for place in columns[1, first:last]]
    documents = [shard.record.documents for shard in dataset.shards]
    there = [(s, n) for s, n in found if s < len(documents) and n < documents[s]]  # the index may be another's
    return [(s, n) for s, n in there if dataset.shards[s].documents.id[n].tobytes() == document_id]


def id_halves(ids: npt.NDArray[np.void]) -> U64:
    """A column of ids [n] as numbers [n, 2], which are fast to compare."""
    return ids.view("<u8").reshape(-1, 2)


def _header(dataset: Dataset) -> bytes:
    count = np.array([dataset.summary.documents], "<u8").tobytes()
    return _MAGIC + bytes.fromhex(dataset.dataset_id) + count

r"""An index of a dataset's documents by id: optional, beside the shards, worth it from some 10^8 documents on.

    documents.index   magic b"btidx\0\0\1", dataset id (16 bytes), n (u64), then, in the order of the keys,
                      key u64[n], the first 8 bytes of an id, and place u64[n], shard << 32 | document in the shard

It is a hint: what it points to is compared with the id itself, and one of another dataset is passed over.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from bigtrain.config.errors import BigtrainError
from bigtrain.data.files import write_atomically
from bigtrain.data.manifest import MANIFEST
from bigtrain.data.store import Dataset

INDEX = "documents.index"
_MAGIC = b"btidx\0\0\1"

U64 = npt.NDArray[np.uint64]


def index_datasets(directory: Path) -> list[Path]:
    """Write the index of every dataset at or below a folder; returns their paths.

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


def write_index(dataset: Dataset) -> Path:
    """Write the index of a dataset; needs 32 bytes of memory a document. Returns its path."""
    count = dataset.manifest.documents
    keys, places = np.empty(count, np.uint64), np.empty(count, np.uint64)
    start = 0
    for shard, stored in enumerate(dataset.shards):
        own = id_halves(stored.documents.id)[:, 0]
        keys[start : start + len(own)] = own
        places[start : start + len(own)] = np.arange(len(own), dtype=np.uint64) + np.uint64(shard << 32)
        start += len(own)
    order = np.argsort(keys, kind="stable")

    def write(file: BinaryIO) -> None:
        file.write(_header(dataset))
        for column in (keys, places):
            file.write(column[order].astype("<u8", copy=False).data)

    path = dataset.directory / INDEX
    write_atomically(path, write)
    return path


def look_up(dataset: Dataset, document_id: bytes) -> list[tuple[int, int]] | None:
    """Where documents with an id (16 bytes) are, as (shard, document in it); None where there is no index to ask."""
    path, header = dataset.directory / INDEX, _header(dataset)
    count = dataset.manifest.documents
    if not path.is_file() or path.stat().st_size != len(header) + 16 * count:
        return None
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if data[: len(header)] != header:
        return None
    columns: U64 = np.frombuffer(data, "<u8", offset=len(header)).reshape(2, count)
    wanted = np.frombuffer(document_id, "<u8")
    first, last = columns[0].searchsorted(wanted[0], "left"), columns[0].searchsorted(wanted[0], "right")
    found = [(int(place) >> 32, int(place) & 0xFFFFFFFF) for place in columns[1, first:last]]
    return [(s, n) for s, n in found if dataset.shards[s].documents.id[n].tobytes() == document_id]


def id_halves(ids: npt.NDArray[np.void]) -> U64:
    """A column of ids [n] as numbers [n, 2], which compare fast."""
    return ids.view("<u8").reshape(-1, 2)


def _header(dataset: Dataset) -> bytes:
    count = np.array([dataset.manifest.documents], "<u8").tobytes()
    return _MAGIC + bytes.fromhex(dataset.dataset_id) + count

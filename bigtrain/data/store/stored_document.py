"""A document in the shards, and the search for it by its id or its origin."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigtrain.base import BigtrainError
from bigtrain.data.format.documents import ID_BYTES
from bigtrain.data.format.shards import DocumentColumns
from bigtrain.data.store.document_index import id_halves, look_up, shards_with_file
from bigtrain.data.store.store import Dataset, Labels, Tokens

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StoredDocument:
    """Document number `number` of shard number `shard` of a dataset."""

    dataset: Dataset
    shard: int
    number: int

    @property
    def id(self) -> str:
        """Its id: 32 hexadecimal digits."""
        return self._columns.id[self.number].tobytes().hex()

    @property
    def file(self) -> str:
        """Its source file, relative to the corpus."""
        return self._columns.file_name(self.number)

    @property
    def position(self) -> int:
        """Its index in that file."""
        return int(self._columns.position[self.number])

    @property
    def tokens(self) -> int:
        """Number of tokens, with its end-of-text."""
        return self.end - self.start

    @property
    def start(self) -> int:
        """Number of its first token in the stream of the dataset."""
        return self.dataset.starts[self.shard] + int(self._columns.offset[self.number])

    @property
    def end(self) -> int:
        """Number of the first token after it."""
        return self.dataset.starts[self.shard] + int(self._columns.offset[self.number + 1])

    @property
    def held_out(self) -> bool:
        """Whether it belongs to validation, and is never trained on."""
        return self.dataset.summary.split == "validation"

    def read(self, start: int, end: int) -> Tokens:
        """Tokens [start, end) of the document, a view."""
        first = int(self._columns.offset[self.number])
        return self.dataset.shards[self.shard].read(first + start, first + end, self.dataset.summary.vocab_size)

    def labels(self, start: int, end: int) -> Labels | None:
        """Labels of tokens [start, end) of the document, a view; None where its dataset has none."""
        if self.dataset.summary.labels is None:
            return None
        first = int(self._columns.offset[self.number])
        return self.dataset.shards[self.shard].labels[first + start : first + end]

    @property
    def metadata(self) -> dict[str, Any] | None:
        """What its source keeps beside it; None where that is nothing. Raises BigtrainError if the file is damaged."""
        return self.dataset.shards[self.shard].metadata(self.number)

    @property
    def _columns(self) -> DocumentColumns:
        return self.dataset.shards[self.shard].documents


def documents_between(dataset: Dataset, start: int, end: int) -> Iterator[StoredDocument]:
    """The documents with a token in [start, end) of the dataset's stream, in order."""
    for shard in range(dataset.shard_at(start), len(dataset.shards)):
        base = dataset.starts[shard]
        if base >= end:
            return
        offset = dataset.shards[shard].documents.offset
        first = int(offset.searchsorted(max(start - base, 0), "right")) - 1
        last = min(int(offset.searchsorted(end - base)), len(offset) - 1)
        for number in range(first, last):
            yield StoredDocument(dataset, shard, number)


def find_document(datasets: Sequence[Dataset], reference: str) -> StoredDocument:
    """The document with an id of 32 hexadecimal digits, or the one at `SOURCE:FILE[:POSITION]`.

    The search uses the indexes if `bigtrain data index` has made them. Otherwise it reads the documents of all shards:
    by id the column of ids (16 bytes per document), and by origin the names of the files in each shard.

    Raises:
        BigtrainError: there is no such document, or there are several in the file.
    """
    found = _with_id(datasets, reference) if ":" not in reference else _from_origin(datasets, reference)
    if len(found) == 1:
        return found[0]
    if found:
        raise BigtrainError(
            f"{reference!r} is a file of several documents",
            found=f"{len(found):,} documents, the first at position {min(document.position for document in found)}",
            wanted="one of them",
            fix=f"add a position, as in {reference}:{found[0].position}",
        )
    documents = sum(dataset.summary.documents for dataset in datasets)
    raise BigtrainError(
        f"there is no document {reference!r}",
        found=f"{documents:,} others in {', '.join(dict.fromkeys(dataset.name for dataset in datasets))}",
        wanted="an id of 32 hexadecimal digits, or SOURCE:FILE or SOURCE:FILE:POSITION",
        fix="`bigtrain data where RUN --step N` prints the ids and origins of the documents in a step",
    )


def _with_id(datasets: Sequence[Dataset], reference: str) -> list[StoredDocument]:
    """At most one document: an id identifies one document of one source, in one split."""
    if not re.fullmatch(rf"[0-9a-fA-F]{{{2 * ID_BYTES}}}", reference):
        return []
    wanted = bytes.fromhex(reference)
    for dataset in datasets:
        indexed = look_up(dataset, wanted)
        for shard, number in _scan(dataset, wanted) if indexed is None else indexed:
            return [StoredDocument(dataset, shard, number)]
    return []


def _scan(dataset: Dataset, wanted: bytes) -> Iterator[tuple[int, int]]:
    key, rest = np.frombuffer(wanted, "<u8")
    for shard, stored in enumerate(dataset.shards):
        halves = id_halves(stored.documents.id)
        for number in np.flatnonzero(halves[:, 0] == key).tolist():
            if halves[number, 1] == rest:
                yield shard, number


def _from_origin(datasets: Sequence[Dataset], reference: str) -> list[StoredDocument]:
    source, _, origin = reference.partition(":")
    own = [dataset for dataset in datasets if dataset.name == source]
    file, _, position = origin.rpartition(":")
    if file and position.isdecimal() and (found := _in_file(own, file, int(position))):
        return found
    return _in_file(own, origin, None)  # the name of a file may have a colon


def _in_file(datasets: Sequence[Dataset], file: str, position: int | None) -> list[StoredDocument]:
    found = []
    for dataset in datasets:
        indexed = shards_with_file(dataset, file.encode())
        for shard in range(len(dataset.shards)) if indexed is None else indexed:
            numbers = _numbers_in_file(dataset.shards[shard].documents, file.encode(), position)
            found += [StoredDocument(dataset, shard, number) for number in numbers.tolist()]
    return found


def _numbers_in_file(columns: DocumentColumns, file: bytes, position: int | None) -> I64:
    """The documents (i64) of a shard from a file, or only the one at a position in it."""
    ends = columns.name_end.astype(np.int64)
    starts = np.concatenate(([0], ends[:-1]))
    same_length = np.flatnonzero(ends - starts == len(file))
    letters = np.frombuffer(columns.names, np.uint8)[starts[same_length, None] + np.arange(len(file))]
    index = same_length[(letters == np.frombuffer(file, np.uint8)).all(axis=1)]
    if not len(index):
        return np.empty(0, np.int64)
    chosen = columns.file == index[0]
    return np.flatnonzero(chosen if position is None else chosen & (columns.position == position))

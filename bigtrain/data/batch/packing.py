"""Packing: which tokens of a dataset are in which sequence.

A sequence is a row of sequence_length tokens. It consists of spans: contiguous tokens of one shard. With `concat`,
sequence i is tokens [i*T, (i+1)*T) of the dataset's stream of documents, and no index is needed. The other packings
have an index, which the build makes (`build/pack/`): there a span is a document, or a part of one.

In every packing each token is in exactly one sequence, so an epoch has each token once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bigtrain.base import BigtrainError
from bigtrain.config import DataSettings
from bigtrain.data.format.file_record import changed_error
from bigtrain.data.format.mapping import keep_mapped
from bigtrain.data.format.pack_file import OF_SENTENCES, PackManifest, PackReader, PackRecord, manifest_path
from bigtrain.data.format.summary import PackSummary
from bigtrain.data.store.store import Dataset

I64 = npt.NDArray[np.int64]
RESTORE_PACK = "restore the file, or remove it and build the data again"


class Spans(NamedTuple):
    """The spans of some sequences: one array [n] per field. The spans of a sequence are in their order."""

    row: I64
    """Index of the sequence in the request."""
    offset: I64
    """First token of the span, counted in its sequence."""
    shard: I64
    start: I64
    """First token of the span, counted in its shard."""
    length: I64


class Packing(Protocol):
    """How the tokens of a dataset make sequences."""

    dataset: Dataset
    sequence_length: int
    rows: int
    """Sequences in one epoch."""
    makes_pairs: bool
    """Whether a sequence is a pair of segments."""

    @property
    def pack_id(self) -> str | None:
        """Hash of the index; None without an index."""
        ...

    def check_sizes(self, part: int = 0, of: int = 1) -> None:
        """Look at every `of`-th file of the index from number `part` on. Raises BigtrainError."""
        ...

    def spans(self, sequences: I64) -> Spans:
        """The spans of these sequences (i64 [n]). The number after the last sequence has none."""
        ...

    def sequences_with(self, start: int, end: int) -> I64:
        """The sequences, in order, with tokens of [start, end) of the stream, which are of one document."""
        ...


class ConcatPacking:
    """Documents one after the other, cut every `sequence_length` tokens. The last row of the stream may be short."""

    pack_id: str | None = None
    makes_pairs = False

    def __init__(self, dataset: Dataset, sequence_length: int) -> None:
        self.dataset, self.sequence_length = dataset, sequence_length
        self.rows = -(-dataset.tokens // sequence_length)
        self._starts = np.array(dataset.starts)

    def check_sizes(self, part: int = 0, of: int = 1) -> None:
        """Nothing: there is no index."""

    def spans(self, sequences: I64) -> Spans:
        """The spans of these sequences (i64 [n]). The number after the last sequence has none."""
        row = np.flatnonzero(sequences < self.rows)
        start = sequences[row] * self.sequence_length
        end = np.minimum(start + self.sequence_length, self.dataset.tokens)
        offset = np.zeros_like(start)
        parts = []
        while len(row):  # once, and again for spans that continue in the next shard
            shard = self._starts.searchsorted(start, "right") - 1
            stop = np.minimum(end, self._starts[shard + 1])
            parts.append(Spans(row, offset, shard, start - self._starts[shard], stop - start))
            more = np.flatnonzero(stop < end)
            row, offset, start, end = row[more], (offset + stop - start)[more], stop[more], end[more]
        return parts[0] if len(parts) == 1 else _in_order(parts)

    def sequences_with(self, start: int, end: int) -> I64:
        """The sequences, in order, with tokens of [start, end) of the stream."""
        return np.arange(start // self.sequence_length, (end - 1) // self.sequence_length + 1)


class IndexedPacking:
    """Sequences from a pack index.

    Args:
        dataset: the training split of a source.
        packing: one of `PACKINGS`.
        sequence_length: T.
        summary: what another rank has read from the manifest. Default: the manifest is read now.

    Raises:
        BigtrainError: there is no index, it is of other data, or a file of it is missing or has another size.
    """

    def __init__(
        self, dataset: Dataset, packing: str, sequence_length: int, summary: PackSummary | None = None
    ) -> None:
        self.dataset, self.sequence_length = dataset, sequence_length
        self._packing, self.makes_pairs = packing, packing in OF_SENTENCES
        self._packs: dict[int, PackFile] = {}
        if summary is None:
            vars(self)["_manifest"] = read_packs(dataset, packing, sequence_length)  # as cached_property keeps it
            summary = PackSummary.of(self._manifest)
        self._summary = summary
        self.rows = int(summary.starts[-1])
        self.pack_id: str | None = summary.pack_id
        self._starts = summary.starts
        if "_manifest" in vars(self):
            self.check_sizes()

    @cached_property
    def _manifest(self) -> PackManifest:
        """The manifest, with the hashes of all blocks: of the rank that reads a pack of this dataset."""
        directory, mirror = self.dataset.directory, self.dataset.mirror
        path = manifest_path(directory, self._packing, self.sequence_length)
        if mirror is not None:
            mirror.fetch_manifest(path, self._summary.pack_id)
        manifest = read_packs(self.dataset, self._packing, self.sequence_length)
        if manifest.pack_id != self._summary.pack_id:
            raise changed_error(path, f"pack id {manifest.pack_id}", f"pack id {self._summary.pack_id}")
        return manifest

    def check_sizes(self, part: int = 0, of: int = 1) -> None:
        """Look at every `of`-th file of the index from number `part` on; with part 0, for its manifest too.

        Raises:
            BigtrainError: a file is missing or has another size than in the manifest.
        """
        if self.dataset.mirror is None:
            directory = self.dataset.directory
            manifest = manifest_path(directory, self._packing, self.sequence_length)
            if part == 0 and not manifest.is_file():
                raise BigtrainError(f"{manifest} is missing", fix=RESTORE_PACK)
            for index in range(part, len(self._summary.files), of):
                self._summary.files[index].check_size(self.dataset.directory, RESTORE_PACK)

    def spans(self, sequences: I64) -> Spans:
        """The spans of these sequences (i64 [n]). The number after the last sequence has none."""
        shards = self._starts.searchsorted(sequences, "right") - 1
        parts = []
        for shard in np.unique(shards[sequences < self.rows]).tolist():
            rows = np.flatnonzero(shards == shard)
            count, start, length = self._pack(shard).spans_of(sequences[rows] - self._starts[shard])
            begin = np.cumsum(count) - count  # index of the first span of each row
            before = np.cumsum(length) - length
            offset = before - np.repeat(before[begin], count)
            parts.append(Spans(np.repeat(rows, count), offset, np.full_like(length, shard), start, length))
        return parts[0] if len(parts) == 1 else _in_order(parts)

    def sequences_with(self, start: int, end: int) -> I64:
        """The sequences, in order, with tokens of [start, end) of the stream, which are of one document."""
        shard = self.dataset.shard_at(start)
        base = self.dataset.starts[shard]
        return self._pack(shard).rows_with(start - base, end - base) + self._starts[shard]

    def _pack(self, shard: int) -> PackReader:
        pack = self._packs.get(shard)
        if pack is None:
            record = self._manifest.shards[shard]
            pack = PackFile(self.dataset, record, self._manifest.block_bytes, self.sequence_length)
            pack = self._packs.setdefault(shard, pack)
        return pack.reader


class PackFile:
    """The `.pack` file of a shard. It is mapped at the first read, and again if many others were read since."""

    def __init__(self, dataset: Dataset, record: PackRecord, block_bytes: int, sequence_length: int) -> None:
        self._dataset, self._record = dataset, record
        self._block_bytes, self._sequence_length = block_bytes, sequence_length
        self._reader: PackReader | None = None

    @property
    def reader(self) -> PackReader:
        """Reads its rows. Raises BigtrainError where the file is missing or has another size."""
        keep_mapped(self)
        if (reader := self._reader) is None:
            path = self._dataset.fetched(self._record.file, self._block_bytes)
            self._record.file.check_size(path.parent, RESTORE_PACK)
            reader = self._reader = PackReader(path, self._record, self._block_bytes, self._sequence_length)
        return reader

    def unmap(self) -> None:
        """Forget the file; it is mapped again when it is needed."""
        self._reader = None


def read_packs(dataset: Dataset, packing: str, sequence_length: int) -> PackManifest:
    """The manifest of a dataset's packs.

    Raises:
        BigtrainError: there is none, or it is of other data.
    """
    manifest = PackManifest.read(dataset.directory, packing, sequence_length, dataset.dataset_id, dataset.fetch_part)
    packed = np.array(manifest.table.counts["tokens"], np.int64)
    if not np.array_equal(packed, np.diff(dataset.summary.starts)):
        path = manifest.path(dataset.directory)
        raise changed_error(path, f"{len(packed):,} packs of {packed.sum():,} tokens", "a pack for each shard")
    return manifest


def open_packings(settings: DataSettings, datasets: list[Dataset]) -> list[Packing]:
    """The packings of the training datasets, once for each of `settings.cuts`.

    Raises:
        BigtrainError: an index is missing or is of other data.
    """
    lengths = [cut.sequence_length for cut in settings.cuts]
    if settings.packing == "concat":
        return [ConcatPacking(dataset, length) for length in lengths for dataset in datasets]
    return [IndexedPacking(dataset, settings.packing, length) for length in lengths for dataset in datasets]


def held_out_packing(settings: DataSettings, dataset: Dataset) -> Packing:
    """The packing of a dataset for evaluations. Raises BigtrainError if an index is missing or is of other data."""
    if settings.held_out_packing == "concat":
        return ConcatPacking(dataset, settings.sequence_length)
    return IndexedPacking(dataset, settings.held_out_packing, settings.sequence_length)


def fetch(packings: Sequence[Packing], sources: I64, sequences: I64) -> None:
    """Fetch what sequences of remote datasets need side by side; assembling them then finds it here.

    Raises BigtrainError where it cannot be had.
    """
    reads: dict[str, Callable[[], object]] = {}
    mirror = None
    for source in np.unique(sources).tolist():
        dataset = packings[source].dataset
        if dataset.mirror is None:
            continue
        mirror = dataset.mirror
        spans = packings[source].spans(sequences[sources == source])
        for shard, start, length in zip(*(field.tolist() for field in spans[2:]), strict=True):
            reads |= dataset.shards[shard].missing(start, start + length + 1)
    if mirror is not None and len(reads) > 1:
        mirror.side_by_side(reads.values())


def _in_order(parts: list[Spans]) -> Spans:
    if not parts:
        return Spans(*(np.empty(0, np.int64) for _ in Spans._fields))
    joined = [np.concatenate(field) for field in zip(*parts, strict=True)]
    order = np.lexsort((joined[1], joined[0]))
    return Spans(*(field[order] for field in joined))

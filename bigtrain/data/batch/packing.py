"""Packing: which tokens of a dataset are in which sequence.

A sequence is a row of sequence_length tokens. It consists of spans: contiguous tokens of one shard. With `concat`,
sequence i is tokens [i*T, (i+1)*T) of the dataset's stream of documents, and no index is needed. The other packings
have an index, which the build makes (`build/pack/`): there a span is a document, or a part of one.

In every packing each token is in exactly one sequence, so an epoch has each token once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bigtrain.config import DataSettings
from bigtrain.data.format.manifest import changed_error
from bigtrain.data.format.mapping import map_file
from bigtrain.data.format.pack_file import PackManifest, ShardPack
from bigtrain.data.store.store import Dataset, check_size

I64 = npt.NDArray[np.int64]


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

    @property
    def pack_id(self) -> str | None:
        """Hash of the index; None without an index."""
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

    def __init__(self, dataset: Dataset, sequence_length: int) -> None:
        self.dataset, self.sequence_length = dataset, sequence_length
        self.rows = -(-dataset.tokens // sequence_length)
        self._starts = np.array(dataset.starts)

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

    Raises:
        BigtrainError: there is no index, it is of other data, or a file of it is missing or has another size.
    """

    def __init__(self, dataset: Dataset, packing: str, sequence_length: int) -> None:
        self.dataset, self.sequence_length = dataset, sequence_length
        self._manifest = PackManifest.read(dataset.directory, packing, sequence_length, dataset.dataset_id)
        shards = [shard.tokens for shard in self._manifest.shards]
        if shards != [shard.record.tokens for shard in dataset.shards]:
            path = self._manifest.path(dataset.directory)
            raise changed_error(path, f"{len(shards):,} packs of {sum(shards):,} tokens", "a pack for each shard")
        if dataset.mirror is None:
            for pack in self._manifest.shards:
                check_size(dataset.directory, pack.file, "restore the file, or remove it and build the data again")
        self.rows = self._manifest.rows
        self.pack_id: str | None = self._manifest.pack_id
        self._starts = np.array(self._manifest.starts)
        self._packs: dict[int, ShardPack] = {}

    def spans(self, sequences: I64) -> Spans:
        """The spans of these sequences (i64 [n]). The number after the last sequence has none."""
        shards = self._starts.searchsorted(sequences, "right") - 1
        parts = []
        for shard in np.unique(shards[sequences < self.rows]).tolist():
            pack = self._pack(shard)
            rows = np.flatnonzero(shards == shard)
            local = sequences[rows] - self._starts[shard]
            first, count = pack.first[local], pack.first[local + 1] - pack.first[local]
            begin = np.cumsum(count) - count  # index of the first span of each row
            span = pack.span[np.arange(count.sum()) + np.repeat(first - begin, count)]
            length = pack.start[span + 1] - pack.start[span]
            before = np.cumsum(length) - length
            offset = before - np.repeat(before[begin], count)
            parts.append(Spans(np.repeat(rows, count), offset, np.full_like(length, shard), pack.start[span], length))
        return parts[0] if len(parts) == 1 else _in_order(parts)

    def sequences_with(self, start: int, end: int) -> I64:
        """The sequences, in order, with tokens of [start, end) of the stream, which are of one document."""
        shard = self.dataset.shard_at(start)
        pack, base = self._pack(shard), self.dataset.starts[shard]
        first, last = pack.start.searchsorted(start - base, "right") - 1, pack.start.searchsorted(end - base)
        return np.unique(pack.row[first:last]).astype(np.int64) + self._starts[shard]

    def _pack(self, shard: int) -> ShardPack:
        if shard not in self._packs:
            file = self._manifest.shards[shard].file
            path = self.dataset.fetched(file)
            bad = file.bad_block(map_file(path), self._manifest.block_bytes)
            if bad is not None:  # without this check, other rows would be used without an error
                raise changed_error(path, f"another block {bad}", "the blocks that its manifest names")
            pack, record = ShardPack.open(path), self._manifest.shards[shard]
            if (pack.rows, len(pack.row), pack.tokens) != (record.rows, record.spans, record.tokens):
                found = f"{pack.rows:,} rows of {len(pack.row):,} spans of {pack.tokens:,} tokens"
                raise changed_error(path, found, f"{record.rows:,} of {record.spans:,} of {record.tokens:,}")
            self._packs[shard] = pack
        return self._packs[shard]


def open_packings(settings: DataSettings, datasets: list[Dataset]) -> list[Packing]:
    """The packings of the training datasets. Raises BigtrainError if an index is missing or is of other data."""
    if settings.packing == "concat":
        return [ConcatPacking(dataset, settings.sequence_length) for dataset in datasets]
    return [IndexedPacking(dataset, settings.packing, settings.sequence_length) for dataset in datasets]


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

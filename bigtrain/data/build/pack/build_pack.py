"""Makes the packs of a dataset, shards in parallel. A build that is killed continues.

A pack depends only on the documents of its shard. When a pack is durable, a note beside it records the dataset and the
hashes of its blocks. A build that starts again keeps the pack if its bytes still have these hashes. The manifest is
written last, then the notes are removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bigtrain.base import TEMPORARY_SUFFIX, BigtrainError, read_json, read_regular, write_atomically
from bigtrain.data.build.pack.pack_shard import pack_shard
from bigtrain.data.build.progress import REPORT_SECONDS
from bigtrain.data.build.workers import Workers
from bigtrain.data.format.hashing import canonical_json
from bigtrain.data.format.manifest import LARGEST, DatasetManifest, FileRecord, ShardRecord, changed_error
from bigtrain.data.format.mapping import map_file
from bigtrain.data.format.pack_file import FORMAT, I64, PackManifest, PackRecord, ShardPack, pack_path
from bigtrain.data.format.shards import BlockHasher, DocumentColumns

NOTE_SUFFIX = ".note"


def build_packs(
    directory: Path, packing: str, sequence_length: int, workers: Workers, report: Callable[[str], None]
) -> PackManifest:
    """Make the packs of a dataset, unless they exist.

    Args:
        directory: the folder of the dataset.
        packing: `best_fit` or `buckets`.
        sequence_length: T.
        workers: pack the shards. The bytes do not depend on their number.
        report: called with lines of progress.

    Raises:
        BigtrainError: the dataset was changed after it was written.
        OSError: a file cannot be written. Finished packs are kept.
    """
    dataset = DatasetManifest.read(directory)
    name = f"{dataset.source}: {packing}-{sequence_length}"
    try:
        manifest = PackManifest.read(directory, packing, sequence_length, dataset.dataset_id)
        there = all(shard.file.size_in(directory) == shard.file.size for shard in manifest.shards)
    except BigtrainError:
        there = False  # missing, damaged or of other shards: it is made again from the shards
    if there:
        _discard_others(directory, manifest)
        report(f"{name}: already there")
        return manifest

    block_bytes = PackManifest.block_bytes_for(dataset)
    job = PackJob(directory, packing, sequence_length, dataset.dataset_id, block_bytes)
    ends = accumulate(shard.tokens for shard in dataset.shards)
    results = workers.map_in_order(job, zip(dataset.shards, ends, strict=True))
    packed = list(_reported(results, name, len(dataset.shards), report))
    parents, records = {"dataset_id": dataset.dataset_id}, [shard.record for shard in packed]
    manifest = PackManifest(packing, sequence_length, parents, records, block_bytes)
    manifest.write(directory)
    _discard_others(directory, manifest)
    cuts = Cuts(*(sum(count) for count in zip(*(shard.cuts for shard in packed), strict=True)))
    report(
        f"{name}: {manifest.rows:,} rows, {manifest.tokens / manifest.rows / sequence_length:.3%} full; "
        f"cut {cuts.cut:,} of {cuts.documents:,} documents, {cuts.short:,} of them no longer than a row "
        f"(concat: {cuts.concat_cut:,} and {cuts.concat_short:,})"
    )
    return manifest


class Cuts(NamedTuple):
    """Number of documents in more than one row, and of those that would fit into one; and the same for concat."""

    documents: int
    cut: int
    short: int
    concat_cut: int
    concat_short: int

    @classmethod
    def of(cls, offset: I64, start: I64, sequence_length: int, base: int) -> Cuts:
        """Count for documents at `offset` [n+1] in a shard that starts at token `base` of the stream."""
        fits = np.diff(offset) <= sequence_length
        cut = np.diff(np.searchsorted(start, offset)) > 1
        rows = (offset[:-1] + base) // sequence_length, (offset[1:] + base - 1) // sequence_length
        concat = rows[0] != rows[1]
        return cls(len(fits), *(int(np.count_nonzero(which)) for which in (cut, cut & fits, concat, concat & fits)))


@dataclass(frozen=True)
class PackedShard:
    """The pack of a shard, and its cuts."""

    record: PackRecord
    cuts: Cuts


@dataclass(frozen=True)
class PackJob:
    """Packs shards of one dataset, in a worker process."""

    directory: Path
    packing: str
    sequence_length: int
    dataset_id: str
    block_bytes: int

    def __call__(self, item: tuple[ShardRecord, int]) -> PackedShard:
        """Pack a shard, given with where it ends in the stream, unless it is done already."""
        shard, end = item
        offset = _read_offsets(self.directory, shard)
        path = pack_path(self.directory, shard, self.packing, self.sequence_length)
        note = path.with_name(path.name + NOTE_SUFFIX)
        record = self._finished(note)
        if record is None:
            pack = pack_shard(offset, self.packing, self.sequence_length)
            data = pack.encode()
            write_atomically(path, data)
            record = PackRecord(pack.rows, len(pack.row), pack.tokens, self._file_record(path.name, data))
            content = canonical_json(self._note(record))
            write_atomically(note, content)
        start = ShardPack.open(path).start
        return PackedShard(record, Cuts.of(offset, start, self.sequence_length, end - shard.tokens))

    def _note(self, record: PackRecord) -> dict[str, object]:
        return {"format": FORMAT, "dataset_id": self.dataset_id, "pack": record.to_json()}

    def _finished(self, note: Path) -> PackRecord | None:
        """The record of a pack that an earlier build finished, if the file still has its content."""
        try:
            value = read_json(note, LARGEST)
            record = PackRecord.from_json(value["pack"], note)
            data = read_regular(self.directory / record.file.name, record.file.size)
        except (FileNotFoundError, KeyError, TypeError, BigtrainError):
            return None
        same = value == self._note(record) and record.file == self._file_record(record.file.name, data)
        return record if same else None

    def _file_record(self, name: str, data: bytes) -> FileRecord:
        hasher = BlockHasher(self.block_bytes)
        hasher.update(memoryview(data))
        return hasher.record(name)


def _read_offsets(directory: Path, shard: ShardRecord) -> I64:
    """[n+1], the offsets of a shard's documents. Raises BigtrainError if they are not those of the manifest."""
    path = directory / shard.files[1].name
    offset = DocumentColumns.parse(map_file(path), path).offset
    rising = offset[0] == 0 and bool(np.all(np.diff(offset) > 0))
    if not rising or (len(offset) - 1, offset[-1]) != (shard.documents, shard.tokens):
        found = f"{len(offset) - 1:,} documents up to token {offset[-1]:,}" + ("" if rising else ", not in order")
        raise changed_error(path, found, f"{shard.documents:,} documents up to token {shard.tokens:,}")
    return offset


def _discard_others(directory: Path, manifest: PackManifest) -> None:
    """Remove what unfinished builds of these packs left, and packs of shards that no longer exist."""
    names = {shard.file.name for shard in manifest.shards}
    stem = f"{manifest.packing}-{manifest.sequence_length}"
    for suffix in (".pack", f".pack{NOTE_SUFFIX}", f".pack{TEMPORARY_SUFFIX}", f".pack{NOTE_SUFFIX}{TEMPORARY_SUFFIX}"):
        for path in directory.glob(f"*.{stem}{suffix}"):
            if path.name not in names:
                path.unlink()


def _reported(
    results: Iterator[PackedShard], name: str, count: int, report: Callable[[str], None]
) -> Iterator[PackedShard]:
    """The results in order, with a line of progress every REPORT_SECONDS."""
    last = time.perf_counter()
    for done, result in enumerate(results, 1):
        yield result
        if time.perf_counter() - last >= REPORT_SECONDS:
            last = time.perf_counter()
            report(f"{name}: {done:,} of {count:,} shards")

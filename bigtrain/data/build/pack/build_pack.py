"""Makes the packs of a dataset, shards in parallel. A build that is killed continues.

A pack depends only on the documents of its shard. When a pack is durable, a note beside it records the dataset and the
hashes of its blocks. A build that starts again keeps the pack if its bytes still have these hashes. The manifest is
written last, then the notes are removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bigtrain.base import TEMPORARY_SUFFIX, BigtrainError, read_json, read_regular, write_atomically
from bigtrain.data.build.execute import BuildExecutor
from bigtrain.data.build.pack.pack_shard import pack_shard
from bigtrain.data.build.progress import REPORT_SECONDS
from bigtrain.data.format.file_record import LARGEST, FileRecord, changed_error
from bigtrain.data.format.hashing import canonical_json
from bigtrain.data.format.manifest import DatasetManifest, ShardSize
from bigtrain.data.format.mapping import map_file
from bigtrain.data.format.pack_file import FORMAT, I64, OF_SENTENCES, PackManifest, PackRecord, ShardPack, pack_path
from bigtrain.data.format.shards import BlockHasher, DocumentColumns
from bigtrain.data.format.summary import DatasetSummary
from bigtrain.data.format.tokenizer import DataTokenizer

NOTE_SUFFIX = ".note"


def build_packs(
    directory: Path, packing: str, sequence_length: int, executor: BuildExecutor, report: Callable[[str], None]
) -> PackManifest:
    """Make the packs of a dataset, unless they exist.

    Args:
        directory: the folder of the dataset.
        packing: one of `PACKINGS`.
        sequence_length: T.
        executor: packs the shards. The bytes do not depend on their number.
        report: called with lines of progress.

    Raises:
        BigtrainError: the dataset was changed after it was written, or has no two sentences in one document where the
            packing makes pairs of sentences.
        OSError: a file cannot be written. Finished packs are kept.
    """
    dataset = DatasetManifest.read(directory)
    which = "" if dataset.split == "train" else f" {dataset.split}"
    name = f"{dataset.source}{which}: {packing}-{sequence_length}"
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
    job = PackJob(directory, packing, sequence_length, dataset.dataset_id, block_bytes, dataset.dtype)
    summary = DatasetSummary.of(dataset)
    shards = ((summary.shard(index), int(end)) for index, end in enumerate(summary.starts[1:]))
    results = executor.map_in_order(job, shards)
    packed = list(_reported(results, name, len(dataset.shards), report))
    needs_sentences = packing in OF_SENTENCES and dataset.split == "train"
    if needs_sentences and not any(shard.of_sentences for shard in packed):
        raise BigtrainError(
            f"data.packing {packing}: the documents of source {dataset.source!r} have no two sentences",
            found=f"{dataset.documents:,} documents of one sentence each",
            wanted="documents in which a token with a full stop, a question mark, an exclamation mark or a line break "
            "is followed by another sentence",
            fix="take data.packing best_fit with an objective without sentences, or a source of longer documents",
        )
    parents, records = {"dataset_id": dataset.dataset_id}, [shard.record for shard in packed]
    manifest = PackManifest(packing, sequence_length, parents, records, block_bytes)
    manifest.write(directory)
    _discard_others(directory, manifest)
    if not packed:
        report(f"{name}: no documents")
        return manifest
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
    of_sentences: int
    """Documents with more than one sentence; 0 where the packing does not ask for them."""


@dataclass(frozen=True)
class PackJob:
    """Packs shards of one dataset, in a worker process."""

    directory: Path
    packing: str
    sequence_length: int
    dataset_id: str
    block_bytes: int
    dtype: str
    """Of the token ids."""

    def __call__(self, item: tuple[ShardSize, int]) -> PackedShard:
        """Pack a shard, given with where it ends in the stream, unless it is done already."""
        shard, end = item
        offset = _read_offsets(self.directory, shard)
        path = pack_path(self.directory, shard, self.packing, self.sequence_length)
        note = path.with_name(path.name + NOTE_SUFFIX)
        record = self._finished(note)
        ends = self._sentence_ends(shard) if self.packing in OF_SENTENCES else None
        if record is None:
            pack = pack_shard(offset, self.packing, self.sequence_length, ends)
            data = pack.encode()
            write_atomically(path, data)
            record = PackRecord(pack.rows, len(pack.row), pack.tokens, self._file_record(path.name, data))
            content = canonical_json(self._note(record))
            write_atomically(note, content)
        start = ShardPack.open(path).start
        of_sentences = 0 if ends is None else _of_sentences(offset, ends)
        return PackedShard(record, Cuts.of(offset, start, self.sequence_length, end - shard.tokens), of_sentences)

    def _sentence_ends(self, shard: ShardSize) -> npt.NDArray[np.bool_]:
        """[tokens], whether each token of a shard ends a sentence."""
        tokens = np.frombuffer(map_file(self.directory / shard.files[0].name), self.dtype)
        return _ends_sentence(self.directory.parent.parent)[tokens]

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


@lru_cache(maxsize=1)
def _ends_sentence(data_dir: Path) -> npt.NDArray[np.bool_]:
    """[V], whether each token of a data folder's tokenizer ends a sentence."""
    known = DataTokenizer.open(data_dir).vocabulary()
    assert known.ends_sentence is not None
    return known.ends_sentence


def _of_sentences(offset: I64, ends: npt.NDArray[np.bool_]) -> int:
    """Documents in which something follows a sentence beside the token that ends the document."""
    places = np.flatnonzero(ends)
    document = offset.searchsorted(places, "right") - 1
    return len(np.unique(document[places + 2 < offset[document + 1]]))


def _read_offsets(directory: Path, shard: ShardSize) -> I64:
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

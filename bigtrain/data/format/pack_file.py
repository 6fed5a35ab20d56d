r"""The pack index: which parts of documents share a training row. The build makes it, beside the shards.

    00000.best_fit-2048.pack   one for each shard: spans and rows of that shard
    best_fit-2048.json         the manifest, written last: parents, counts, size and hashes of each file, pack id
    00000.best_fit-2048.json   format 2 alone, of many packs: the hashes of a pack's blocks

A span is a range of tokens of one document. A row has up to T tokens in spans. The spans of a shard partition its
tokens, and the rows partition its spans. A `.pack` file with r rows of m spans, everything little-endian, each column
8-byte aligned:

    magic      8 bytes   b"btpack\0\1"
    r, m       2 x u64
    start      u64[m+1]  first token of each span, in the order of the stream; the last entry is the number of tokens
    row        u32[m]    the row of each span; padded to 8 bytes
    first      u64[r+1]  index in `span` of the first span of each row; the last entry is m
    span       u32[m]    the spans of row 0, of row 1, ..., those of one row in the order of the stream

Rows are numbered in the order of their first spans. So `start` and `row` determine everything, and `first` and `span`
are the inverse of `row`. The pack id is a Merkle root, as the dataset id is: it covers every byte and the dataset.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import Field
from typing_extensions import TypedDict

from bigtrain.base import STRICT, BigtrainError, as_entry
from bigtrain.data.format import shard_table
from bigtrain.data.format.columns import ColumnReader
from bigtrain.data.format.file_record import (
    BLOCK_BYTES,
    LARGEST_BLOCK,
    FileRecord,
    Positive,
    changed_error,
    unlike,
)
from bigtrain.data.format.hashing import canonical_json, identity
from bigtrain.data.format.manifest import DatasetManifest, ShardSize, read_verified
from bigtrain.data.format.mapping import map_file
from bigtrain.data.format.shard_table import FetchPart, ShardTable, parts_of, read_shards, root_of, write_files

FORMAT = 1
PARTS_FORMAT = 2
"""Of PARTS_FROM packs and more: the manifest is a root of parts, see `shard_table.py`."""
PackingName = Literal["best_fit", "buckets", "sentence_pairs", "next_sentence_pairs"]
PACK_MAGIC = b"btpack\0\1"
HEADER_BYTES = len(PACK_MAGIC) + 16
MOST_SPANS = 1 << 32
LARGE_SHARD = 1 << 27
"""Tokens of a shard from which on its pack has small blocks."""
SMALL_BLOCK = 1 << 18
"""Bytes. A rank that reads one row of a pack reads four blocks of it."""
PACKINGS = get_args(PackingName)
OF_SENTENCES = frozenset({"sentence_pairs", "next_sentence_pairs"})
"""The packings whose rows are two segments of whole sentences."""
MANIFEST_PATTERNS = tuple(f"{packing}-*.json" for packing in PACKINGS)

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShardPack:
    """The columns of a `.pack` file, as views of its bytes. Offsets are viewed as signed: see `DocumentColumns`."""

    start: I64
    """[m+1], tokens of the shard."""
    row: npt.NDArray[np.uint32]
    """[m]"""
    first: I64
    """[r+1], indices into `span`."""
    span: npt.NDArray[np.uint32]
    """[m], indices into `start` and `row`."""

    @property
    def rows(self) -> int:
        """Number of rows of the shard."""
        return len(self.first) - 1

    @property
    def tokens(self) -> int:
        """Number of tokens of the shard."""
        return int(self.start[-1])

    @classmethod
    def from_assignment(cls, lengths: I64, bins: I64) -> ShardPack:
        """The pack of spans with these lengths [m], in the order of the stream. Spans with equal `bins` [m] are a row.

        Raises:
            BigtrainError: the shard has more spans than a u32 can count.
        """
        if len(lengths) >= MOST_SPANS:
            raise BigtrainError(
                "a shard has too many documents for a pack index",
                found=f"{len(lengths):,} parts of documents",
                wanted=f"fewer than {MOST_SPANS:,}",
                fix="set data.shard_tokens to a smaller number and build the data again",
            )
        _, seen_first, inverse = np.unique(bins, return_index=True, return_inverse=True)
        number = np.empty(len(seen_first), np.int64)
        number[np.argsort(seen_first)] = np.arange(len(seen_first))
        row = number[inverse]
        start = np.zeros(len(lengths) + 1, "<i8")
        np.cumsum(lengths, out=start[1:])
        first = np.zeros(len(number) + 1, "<i8")
        np.cumsum(np.bincount(row), out=first[1:])
        return cls(start, row.astype("<u4"), first, np.argsort(row, kind="stable").astype("<u4"))

    def encode(self) -> bytes:
        """The bytes of the file."""
        padding = b"\0" * (4 * (len(self.row) % 2))
        return b"".join(
            (
                PACK_MAGIC,
                np.array([self.rows, len(self.row)], "<u8").tobytes(),
                self.start.tobytes(),
                self.row.tobytes() + padding,
                self.first.tobytes(),
                self.span.tobytes(),
            )
        )

    @classmethod
    def parse(cls, data: memoryview, path: Path) -> ShardPack:
        """Views of the columns. Raises BigtrainError if the bytes are not such a file."""
        if bytes(data[:8]) != PACK_MAGIC or len(data) < HEADER_BYTES:
            raise changed_error(path, repr(bytes(data[:8])), repr(PACK_MAGIC))
        rows, spans = (int(n) for n in np.frombuffer(data, "<u8", 2, len(PACK_MAGIC)))
        size = size_of(rows, spans)
        if len(data) != size:
            raise changed_error(path, f"{len(data):,} bytes", f"{size:,} bytes for {rows:,} rows of {spans:,} spans")
        column = ColumnReader(data, HEADER_BYTES)
        pack = cls(
            start=column("<i8", spans + 1),
            row=column("<u4", spans + spans % 2)[:spans],
            first=column("<i8", rows + 1),
            span=column("<u4", spans),
        )
        if (disorder := pack._disorder()) is not None:
            raise changed_error(path, disorder, "columns as bigtrain wrote them")
        return pack

    def _disorder(self) -> str | None:
        """What makes an index of a column lead out of another one; None where none does."""
        if self.start[0] != 0 or (np.diff(self.start) <= 0).any():
            return "spans that do not follow each other"
        if self.first[0] != 0 or self.first[-1] != len(self.span) or (np.diff(self.first) <= 0).any():
            return "rows that do not follow each other"
        if len(self.row) and (self.row.max() >= self.rows or self.span.max() >= len(self.row)):
            return "a span or a row that there is not"
        return None

    @classmethod
    def open(cls, path: Path) -> ShardPack:
        """Map a file. Raises BigtrainError if it is not such a file, and OSError if it cannot be opened."""
        return cls.parse(map_file(path), path)

    def fault(self, offset: I64, sequence_length: int) -> str | None:
        """The first fault of this as the pack of a shard with documents at `offset` [n+1]; None without a fault."""
        lengths = np.diff(self.start)
        if self.start[0] != 0 or self.start[-1] != offset[-1] or np.any(lengths <= 0):
            return f"its spans do not partition the {offset[-1]:,} tokens of the shard"
        if np.any(self.start[np.searchsorted(self.start, offset)] != offset):
            return "a span holds tokens of two documents"
        if len(self.row) == 0 or self.row.max() >= self.rows:
            return f"a span is in none of the {self.rows:,} rows"
        filled = np.bincount(self.row, lengths, minlength=self.rows)
        if np.any(filled > sequence_length):
            row = int(np.argmax(filled > sequence_length))
            return f"row {row:,} has {int(filled[row]):,} tokens, more than {sequence_length:,}"
        wanted = ShardPack.from_assignment(lengths, self.row.astype(np.int64))
        for name in ("row", "first", "span"):
            if not np.array_equal(getattr(self, name), getattr(wanted, name)):
                return f"its column `{name}` is not in order"
        return None


@dataclass(frozen=True)
class PackRecord:
    """The entry of a `.pack` file in the manifest."""

    rows: int
    spans: int
    tokens: int
    file: FileRecord
    COUNTS: ClassVar[tuple[str, ...]] = ("rows", "spans", "tokens")

    @property
    def files(self) -> list[FileRecord]:
        """Its one file."""
        return [self.file]

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON types."""
        return {**vars(self), "file": self.file.to_json()}

    @classmethod
    def from_json(cls, value: object, where: Path) -> PackRecord:
        """The inverse of `to_json`. Raises BigtrainError as `FileRecord.from_json` does."""
        entry = as_entry(_PackEntry, value, where)
        file = FileRecord.from_json(entry["file"], where)
        rows, spans, tokens = entry["rows"], entry["spans"], entry["tokens"]
        _check_entry(where, rows, spans, tokens, file.name, file.size)
        return cls(rows, spans, tokens, file)

    @classmethod
    def of_row(cls, counts: Mapping[str, int], files: Sequence[FileRecord]) -> PackRecord:
        """The entry with these numbers and the one file."""
        (file,) = files
        return cls(**counts, file=file)

    @classmethod
    def check(cls, table: ShardTable[PackRecord], where: Path) -> None:
        """Raise BigtrainError where a shard has several files, or one that is not of these rows and spans."""
        if len(table.names) != 1:
            raise unlike(where, f"{len(table.names)} files of a shard", "one")
        for row in zip(*(table.counts[name] for name in cls.COUNTS), *table.names, *table.sizes, strict=True):
            _check_entry(where, *row)


def _check_entry(where: Path, rows: int, spans: int, tokens: int, name: str, size: int) -> None:
    """Raise BigtrainError where a `.pack` file cannot be of so many rows and spans."""
    if not name.endswith(".pack") or not rows <= spans <= tokens or spans >= MOST_SPANS or size != size_of(rows, spans):
        found = f"{name}: {size:,} bytes for {rows:,} rows of {spans:,} spans of {tokens:,} tokens"
        raise unlike(where, found, f"a .pack file of {size_of(rows, spans):,} bytes")


class _PackEntry(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    rows: Positive
    spans: Positive
    tokens: Positive
    file: dict[str, Any]


class PackReader:
    """Reads some rows of a `.pack` file. Each block that it reads is compared with its hash, once.

    Args:
        path: the file.
        record: its entry in the manifest.
        block_bytes: of the manifest.
        sequence_length: T.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, record: PackRecord, block_bytes: int, sequence_length: int) -> None:
        self._path, self._record, self._block_bytes, self._length = path, record, block_bytes, sequence_length
        self._data = map_file(path)
        spans, column = record.spans, ColumnReader(self._data, HEADER_BYTES)
        self._places: dict[str, int] = {}
        self._columns: dict[str, npt.NDArray[Any]] = {}
        for name, dtype, length in (
            ("start", "<i8", spans + 1),
            ("row", "<u4", spans + spans % 2),
            ("first", "<i8", record.rows + 1),
            ("span", "<u4", spans),
        ):
            self._places[name] = column.position
            self._columns[name] = column(dtype, length)
        self._checked: set[int] = set()

    def spans_of(self, rows: I64) -> tuple[I64, I64, I64]:
        """The spans of rows [n]: how many each row has [n], then the start and the length of each, row by row.

        Raises:
            BigtrainError: a block that was read was changed, or its numbers lead out of the file.
        """
        first = self._read("first", rows)
        count = self._read("first", rows + 1) - first
        if ((first < 0) | (count <= 0) | (count > self._length) | (first + count > self._record.spans)).any():
            raise self._changed("rows that do not follow each other")
        places = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
        span = self._read("span", places)
        if (span >= self._record.spans).any():
            raise self._changed("a span that there is not")
        start = self._read("start", span)
        length = self._read("start", span + 1) - start
        if ((start < 0) | (length <= 0) | (start + length > self._record.tokens)).any():
            raise self._changed("spans that do not follow each other")
        return count, start, length

    def rows_with(self, start: int, end: int) -> I64:
        """The rows, in order, that have tokens of [start, end) of the shard. Raises as `spans_of` does."""
        column = self._columns["start"]
        first, last = int(column.searchsorted(start, "right")) - 1, int(column.searchsorted(end))
        inside = 0 <= first < last <= self._record.spans
        edges = self._read("start", np.array([first, first + 1, last - 1, last])) if inside else np.zeros(4, np.int64)
        if not edges[0] <= start < edges[1] or not edges[2] < end <= edges[3]:
            self._check(np.arange(-(-len(self._data) // self._block_bytes)))  # a changed block misled the search
            raise self._changed("spans that do not follow each other")
        row = self._read("row", np.arange(first, last))
        if (row >= self._record.rows).any():
            raise self._changed("a row that there is not")
        return np.unique(row)

    def _read(self, name: str, index: I64) -> I64:
        """Entries of a column, after their blocks were checked."""
        column = self._columns[name]
        begin = self._places[name] + index * column.itemsize
        self._check(np.concatenate((begin, begin + column.itemsize - 1)) // self._block_bytes)
        return column[index].astype(np.int64)

    def _check(self, blocks: I64) -> None:
        for block in set(np.unique(blocks).tolist()) - self._checked:
            data = self._data[block * self._block_bytes : (block + 1) * self._block_bytes]
            if xxhash.xxh3_128_hexdigest(data) != self._record.file.blocks[block]:
                # Without this check, other rows would be used without an error.
                raise changed_error(self._path, f"another block {block}", "the blocks that its manifest names")
            self._checked.add(block)

    def _changed(self, found: str) -> BigtrainError:
        return changed_error(self._path, found, "columns as bigtrain wrote them")


@dataclass(frozen=True)
class PackManifest:
    """All rows of one split of a source, for one packing and one sequence length."""

    packing: str
    sequence_length: int
    parents: dict[str, str]
    """`dataset_id`: the id of the dataset."""
    shards: Sequence[PackRecord]
    """The packs in the order of the dataset's shards."""
    block_bytes: int = BLOCK_BYTES
    format: int | None = None
    """FORMAT or PARTS_FORMAT. Default: the one that so many packs are written in."""

    def __post_init__(self) -> None:
        if self.format is None:
            in_parts = len(self.shards) >= shard_table.PARTS_FROM
            object.__setattr__(self, "format", PARTS_FORMAT if in_parts else FORMAT)

    @cached_property
    def table(self) -> ShardTable[PackRecord]:
        """The packs as columns."""
        return ShardTable.of(PackRecord, self.shards)

    @cached_property
    def pack_id(self) -> str:
        """The hash of all of this: a Merkle root, for the hashes of the blocks are in it."""
        return identity(self._content())

    @cached_property
    def starts(self) -> list[int]:
        """[shards+1]: the first row of each shard, and the number of all rows."""
        return list(accumulate(self.table.counts["rows"], initial=0))

    @staticmethod
    def block_bytes_for(dataset: DatasetManifest) -> int:
        """The size of the blocks in the packs of a dataset: small ones, where a pack would have several."""
        return SMALL_BLOCK if any(tokens >= LARGE_SHARD for tokens in dataset.table.counts["tokens"]) else BLOCK_BYTES

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return self.starts[-1]

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(self.table.counts["tokens"])

    def path(self, directory: Path) -> Path:
        """The path of the manifest in the dataset's folder."""
        return manifest_path(directory, self.packing, self.sequence_length)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """The names and contents of its files: the parts, if it has some, and last what commits the packs."""
        if self.format == PARTS_FORMAT:
            yield from parts_of(self.table)
        content = {**self._content(), "pack_id": self.pack_id, "rows": self.rows, "tokens": self.tokens}
        yield self.path(Path()).name, canonical_json(content)

    def write(self, directory: Path) -> None:
        """Write the manifest, which commits the packs."""
        write_files(directory, self.files())

    def _content(self) -> dict[str, Any]:
        """The content that the pack id is a hash of."""
        in_parts = self.format == PARTS_FORMAT
        return {
            "packing": self.packing,
            "sequence_length": self.sequence_length,
            "parents": self.parents,
            "shards": root_of(self.table) if in_parts else [shard.to_json() for shard in self.shards],
            "block_bytes": self.block_bytes,
            "format": self.format,
        }

    @classmethod
    def read(
        cls,
        directory: Path,
        packing: str,
        sequence_length: int,
        dataset_id: str | None = None,
        fetch: FetchPart | None = None,
    ) -> PackManifest:
        """Read the manifest of the packs in a dataset's folder.

        Args:
            directory: the folder of the shards.
            packing: one of `PACKINGS`.
            sequence_length: T.
            dataset_id: the id of the dataset. Default: the one in the manifest of the folder.
            fetch: brings a part of the manifest there, when hashes in it are asked for. Default: all of them are there.

        Raises:
            BigtrainError: the manifest is missing, changed, of another format, or of other shards than those beside it.
        """
        path = manifest_path(directory, packing, sequence_length)
        missing = BigtrainError(
            f"the data in {directory} are not packed for data.packing {packing}, sequence_length {sequence_length}",
            found=f"no {path.name}",
            fix="pack them: bigtrain data build CONFIG",
        )
        fix = "make it again: bigtrain data build CONFIG; or use the version of bigtrain that wrote it"
        from_json, formats = partial(cls._from_json, fetch), (FORMAT, PARTS_FORMAT)
        manifest = read_verified(path, from_json, "pack_id", ("rows", "tokens"), formats, missing, fix)
        if (manifest.packing, manifest.sequence_length) != (packing, sequence_length):
            raise changed_error(path, f"{manifest.packing}-{manifest.sequence_length}", f"{packing}-{sequence_length}")
        dataset_id = DatasetManifest.read(directory).dataset_id if dataset_id is None else dataset_id
        if manifest.parents["dataset_id"] != dataset_id:
            raise BigtrainError(
                f"{path} is the pack index of other data than those beside it",
                found=f"dataset id {manifest.parents['dataset_id']}",
                wanted=f"dataset id {dataset_id}",
                fix="make it again: bigtrain data build CONFIG",
            )
        return manifest

    @classmethod
    def _from_json(cls, fetch: FetchPart | None, value: object, where: Path) -> PackManifest:
        entry = as_entry(_PackManifestEntry, value, where)
        in_parts = entry["format"] == PARTS_FORMAT
        shards = read_shards(PackRecord, entry["shards"], where, entry["block_bytes"], fetch, in_parts=in_parts)
        manifest = cls(**{**entry, "shards": shards})  # type: ignore[arg-type]
        if manifest.rows >= 2**63:
            raise unlike(where, f"{manifest.rows:,} rows", "a number that fits 63 bits")
        return manifest


class _Parents(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    dataset_id: str


class _PackManifestEntry(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    packing: PackingName
    sequence_length: Positive
    parents: _Parents
    shards: list[Any] | dict[str, Any]
    block_bytes: Annotated[int, Field(ge=1, le=LARGEST_BLOCK)]
    format: int


def size_of(rows: int, spans: int) -> int:
    """Bytes of a `.pack` file."""
    return HEADER_BYTES + 8 * (spans + 1) + 4 * (spans + spans % 2) + 8 * (rows + 1) + 4 * spans


def find_packs(directory: Path) -> list[tuple[str, int]]:
    """The packings and sequence lengths that the dataset in a folder has manifests for."""
    names = [path.name for pattern in MANIFEST_PATTERNS for path in directory.glob(pattern)]
    matches = [re.fullmatch(r"(\w+)-(\d+)\.json", name) for name in names]
    return sorted((match[1], int(match[2])) for match in matches if match)


def pack_path(directory: Path, shard: ShardSize, packing: str, sequence_length: int) -> Path:
    """The path of the pack of a shard."""
    return directory / f"{Path(shard.files[0].name).stem}.{packing}-{sequence_length}.pack"


def manifest_path(directory: Path, packing: str, sequence_length: int) -> Path:
    """The path of the manifest of a packing."""
    return directory / f"{packing}-{sequence_length}.json"

"""The shards of a manifest as columns, and a manifest in parts: a root, and for each shard a file with its hashes.

    manifest.json   the root: counts, names and sizes of all shards in columns, and the hash of each part
    00000.json      the part of a shard: its entry, as a manifest in one file has it, with the hashes of all its blocks

The root has some 95 bytes a shard, whatever the size of the shards: opening 20,000 of them reads 2 MB. A part is read
when a hash of its blocks is needed, and compared with the root's hash of it. So the id, which is the hash of the
root, covers every byte as before. A part is named after the first file of its shard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Protocol, Self, TypeVar

from pydantic import Field
from typing_extensions import TypedDict

from bigtrain.base import STRICT, as_entry, bare_name, parse_json, read_regular, write_atomically
from bigtrain.data.format.file_record import (
    LARGEST,
    BlockHashes,
    FileRecord,
    Positive,
    Size,
    StoredBlocks,
    changed_error,
    check_files,
    check_names,
    unlike,
)
from bigtrain.data.format.hashing import canonical_json, digest

PARTS_FROM = 1024
"""Shards from which on a manifest is written in parts. Fewer are read in some 30 ms, and keep the ids that they had."""

WRITERS = 64
"""Files of a manifest that are written at the same time."""

FetchPart = Callable[[Path, str], object]
"""Brings the part with a hash to a path, unless it is there. Raises BigtrainError where it cannot be had."""


class ShardEntry(Protocol):
    """What a manifest has for each shard."""

    COUNTS: ClassVar[tuple[str, ...]]
    """The names of its numbers."""

    @property
    def files(self) -> Sequence[FileRecord]:
        """Its files."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON types."""
        ...

    @classmethod
    def from_json(cls, value: object, where: Path) -> Self:
        """The inverse of `to_json`. Raises BigtrainError."""
        ...

    @classmethod
    def of_row(cls, counts: Mapping[str, int], files: Sequence[FileRecord]) -> Self:
        """The entry with these numbers and files."""
        ...

    @classmethod
    def check(cls, table: ShardTable[Self], where: Path) -> None:
        """Raise BigtrainError where the numbers, names and sizes of a shard disagree."""
        ...


Entry = TypeVar("Entry", bound=ShardEntry)


class ShardTable(Sequence[Entry]):
    """The shards of a manifest, of which numbers, names and sizes are there as columns.

    Args:
        counts: the numbers of the shards, by their names: [shards] each.
        names: for each file of a shard, [shards].
        sizes: the same in bytes.
        entry: makes the entry of a shard, by its index.
    """

    def __init__(
        self,
        counts: Mapping[str, Sequence[int]],
        names: Sequence[Sequence[str]],
        sizes: Sequence[Sequence[int]],
        entry: Callable[[int], Entry],
    ) -> None:
        self.counts, self.names, self.sizes = counts, names, sizes
        self._entry = entry

    @classmethod
    def of(cls, kind: type[Entry], shards: Sequence[Entry]) -> ShardTable[Entry]:
        """The table of these shards, which have as many files each."""
        if isinstance(shards, ShardTable):
            return shards
        files = list(zip(*(shard.files for shard in shards), strict=True))
        return cls(
            {name: [getattr(shard, name) for shard in shards] for name in kind.COUNTS},
            [[file.name for file in column] for column in files],
            [[file.size for file in column] for column in files],
            shards.__getitem__,
        )

    def __len__(self) -> int:
        return len(next(iter(self.counts.values())))

    def __getitem__(self, index: int) -> Entry:  # type: ignore[override]  # no slices
        return self._entry(range(len(self))[index])

    def file_names(self) -> Iterator[str]:
        """The names of all files, shard by shard."""
        return (name for shard in zip(*self.names, strict=True) for name in shard)

    def file_sizes(self) -> Iterator[int]:
        """The sizes of all files in bytes, shard by shard."""
        return (size for shard in zip(*self.sizes, strict=True) for size in shard)


def root_of(table: ShardTable[Entry]) -> dict[str, Any]:
    """The shards as the root of a manifest in parts has them."""
    return {
        "counts": dict(table.counts),
        "names": [list(column) for column in table.names],
        "sizes": [list(column) for column in table.sizes],
        "parts": [digest(part).hex() for _, part in parts_of(table)],
    }


def parts_of(table: ShardTable[Entry]) -> Iterator[tuple[str, bytes]]:
    """The name and the content of each part."""
    for index, shard in enumerate(table):
        yield part_name(table.names[0][index]), canonical_json(shard.to_json())


def write_files(directory: Path, files: Iterator[tuple[str, bytes]]) -> None:
    """Write the files of a manifest whole: the parts several at a time, as each waits for the disk, and then the last.

    Raises:
        OSError: one cannot be written. The last is then not there.
    """

    def write(file: tuple[str, bytes]) -> None:
        write_atomically(directory / file[0], file[1])

    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="bigtrain-manifest") as pool:
        last = next(files)
        for file in files:
            pending.append(pool.submit(write, last))
            last = file
            if len(pending) == WRITERS:
                pending.popleft().result()
        for each in pending:
            each.result()
    write(last)


def part_name(file: str) -> str:
    """The name of the part of a shard, from that of its first file."""
    return f"{file.rpartition('.')[0]}.json"


def read_shards(
    kind: type[Entry], value: object, where: Path, block_bytes: int, fetch: FetchPart | None, *, in_parts: bool
) -> Sequence[Entry]:
    """The shards of a manifest, from what it has for them.

    Args:
        kind: the entries.
        value: an entry for each shard; or in parts the columns of `root_of`.
        where: the manifest, beside which its parts are.
        block_bytes: of the manifest.
        fetch: brings a part there first. Default: all of them are there.
        in_parts: whether it is in parts. The hashes of blocks are then read when they are asked for.

    Raises:
        BigtrainError: the value is not as bigtrain writes it. In parts, what is read later raises it, too.
    """
    if isinstance(value, list) == in_parts:
        raise unlike(where, f"shards as {type(value).__name__}", "columns in a manifest in parts alone")
    if not isinstance(value, list):
        return _read_root(kind, value, where, block_bytes, fetch)
    shards = [kind.from_json(shard, where) for shard in value]
    check_files(where, [file for shard in shards for file in shard.files], block_bytes)
    if len({len(shard.files) for shard in shards}) > 1:
        raise unlike(where, "shards of 2 and of 3 files", "as many files for each")
    return shards


def _read_root(
    kind: type[Entry], value: object, where: Path, block_bytes: int, fetch: FetchPart | None
) -> ShardTable[Entry]:
    root = as_entry(_Root, value, where)
    columns: list[Sequence[int | str]] = [*root["counts"].values(), *root["names"], *root["sizes"]]
    fits = {len(column) for column in columns} == {len(root["parts"])} and len(root["names"]) == len(root["sizes"])
    if sorted(root["counts"]) != sorted(kind.COUNTS) or not fits:
        raise unlike(where, f"columns of {[len(column) for column in columns]} shards"[:200], "equal columns")
    stored = _StoredParts(kind, root, where, block_bytes, fetch)
    table = ShardTable(root["counts"], root["names"], root["sizes"], stored.entry)
    names = [*table.file_names(), *map(part_name, root["names"][0])]
    for name in names:
        bare_name(name, where)
    check_names(where, names)
    kind.check(table, where)
    return table


class _Root(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    counts: dict[str, list[Positive]]
    names: Annotated[list[list[str]], Field(min_length=1, max_length=3)]
    sizes: list[list[Size]]
    parts: list[Annotated[str, Field(pattern="^[0-9a-f]{32}$")]]


@dataclass(frozen=True)
class _StoredParts(Generic[Entry]):
    """The parts beside a root, each read at the first time that a hash in it is needed."""

    kind: type[Entry]
    root: _Root
    where: Path
    block_bytes: int
    fetch: FetchPart | None
    parts: dict[int, Entry] = field(default_factory=dict)

    def entry(self, index: int) -> Entry:
        """The entry of a shard, whose hashes are not read yet."""
        return self._row(index, lambda file, number: StoredBlocks(number, partial(self._blocks, index, file)))

    def _row(self, index: int, blocks: Callable[[int, int], BlockHashes]) -> Entry:
        columns = zip(self.root["names"], self.root["sizes"], strict=True)
        files = [
            FileRecord(names[index], sizes[index], blocks(file, -(-sizes[index] // self.block_bytes)))
            for file, (names, sizes) in enumerate(columns)
        ]
        return self.kind.of_row({name: self.root["counts"][name][index] for name in self.kind.COUNTS}, files)

    def _blocks(self, index: int, file: int) -> BlockHashes:
        if index not in self.parts:
            self.parts[index] = self._read(index)
        return BlockHashes(self.parts[index].files[file].blocks)

    def _read(self, index: int) -> Entry:
        """The part of a shard. Raises BigtrainError where it is not the one that the root names."""
        path = self.where.with_name(part_name(self.root["names"][0][index]))
        wanted = self.root["parts"][index]
        if self.fetch is not None:
            self.fetch(path, wanted)
        try:
            content = read_regular(path, LARGEST)
        except FileNotFoundError:
            raise changed_error(path, "no file", f"the part of {self.where.name} with hash {wanted}") from None
        if (found := digest(content).hex()) != wanted:
            raise changed_error(path, f"hash {found}", wanted)
        part = self.kind.from_json(parse_json(content, path), path)
        if part != self._row(index, lambda file, _: BlockHashes(part.files[file].blocks)):
            raise unlike(path, "other numbers, names or sizes", f"those of {self.where.name}")
        if not all(file.has_blocks_of(self.block_bytes) for file in part.files):
            raise unlike(path, "other numbers of hashes", "a hash for each block")
        return part

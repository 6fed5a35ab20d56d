"""The entry of a file in a manifest: its size, and a hash for each of its blocks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, TypeVar, overload

import xxhash
from pydantic import Field
from typing_extensions import TypedDict

from bigtrain.base import STRICT, BigtrainError, as_entry, bare_name

HASH_BYTES = 16
BLOCK_BYTES = 4 << 20
LARGEST = 1 << 30
"""Bytes of a manifest. One of 10^13 tokens, which is ten million blocks, has some 400 million."""
LARGEST_BLOCK = 1 << 28
"""Bytes of a block, which is read into memory whole."""

Size = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]

Copied = TypeVar("Copied", int, str)


def copied(value: Copied) -> Copied:
    """An equal value in memory of its own, so that the values that are kept do not keep the whole parsed file."""
    return value.encode().decode() if isinstance(value, str) else value + 0


class BlockHashes(Sequence[str]):
    """The xxh3-128 of each block of a file, in hexadecimal. They are kept as bytes, since there may be millions."""

    def __init__(self, hashes: Iterable[str]) -> None:
        """Raise ValueError or TypeError where one is no such hash."""
        hashes = list(hashes)
        joined = "".join(hashes)
        self._bytes = bytes.fromhex(joined)
        if self._bytes.hex() != joined or not {len(hash) for hash in hashes} <= {2 * HASH_BYTES}:
            raise ValueError(f"a hash of a block that has not {2 * HASH_BYTES} digits of 0 to 9 and a to f")

    def __len__(self) -> int:
        return len(self._bytes) // HASH_BYTES

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return list(self)[index]
        start = range(len(self))[index] * HASH_BYTES
        return self._bytes[start : start + HASH_BYTES].hex()

    @property
    def joined(self) -> bytes:
        """All hashes, one after the other."""
        return self._bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockHashes) and self._bytes == other._bytes

    def __hash__(self) -> int:
        return hash(self._bytes)


class StoredBlocks(BlockHashes):
    """The hashes of the blocks of a file that are stored elsewhere. Their number is known, and they are read once."""

    def __init__(self, number: int, load: Callable[[], BlockHashes]) -> None:
        self._number, self._load = number, load

    @cached_property
    def _bytes(self) -> bytes:  # type: ignore[override]
        return self._load().joined

    def __len__(self) -> int:
        return self._number

    def __reduce__(self) -> tuple[type[BlockHashes], tuple[list[str]]]:
        return BlockHashes, (list(self),)


@dataclass(frozen=True)
class FileSize:
    """The name of a file, and its size in bytes."""

    name: str
    size: int

    def size_in(self, directory: Path) -> int | None:
        """The size of the file with this name in a folder; None without such a file."""
        try:  # pathlib takes ten times as long, and there may be many files
            return os.stat(f"{directory}/{self.name}").st_size  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return None

    def check_size(self, directory: Path, fix: str) -> None:
        """Raise BigtrainError if the file is missing in a folder or has another size."""
        size = self.size_in(directory)
        if size != self.size:
            raise BigtrainError(
                f"{directory / self.name} is not what its manifest says",
                found="no file" if size is None else f"{size:,} bytes",
                wanted=f"{self.size:,} bytes",
                fix=fix,
            )


@dataclass(frozen=True)
class FileRecord(FileSize):
    """The entry of a file in the manifest."""

    blocks: Sequence[str]
    """xxh3-128 of each block of `DatasetManifest.block_bytes`, in hexadecimal; the last block may be short."""

    def __post_init__(self) -> None:
        if not isinstance(self.blocks, BlockHashes):
            object.__setattr__(self, "blocks", BlockHashes(self.blocks))

    def bad_block(self, data: memoryview, block_bytes: int) -> int | None:
        """The first block of these bytes that differs from the file's; None if all are right."""
        starts = range(0, len(data), block_bytes)
        found = (xxhash.xxh3_128_hexdigest(data[start : start + block_bytes]) for start in starts)
        pairs = enumerate(zip_longest(found, self.blocks))
        return next((index for index, (hash, wanted) in pairs if hash != wanted), None)

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON types."""
        return {"name": self.name, "size": self.size, "blocks": list(self.blocks)}

    def has_blocks_of(self, block_bytes: int) -> bool:
        """Whether it has one hash for each block of its size."""
        return len(self.blocks) == -(-self.size // block_bytes)

    @classmethod
    def from_json(cls, value: object, where: Path) -> FileRecord:
        """The inverse of `to_json`. Raises BigtrainError, which names the file `where`, for a path in place of a
        name, or for anything else that is not such an entry."""
        entry = as_entry(_FileEntry, value, where)
        try:
            return cls(copied(bare_name(entry["name"], where)), copied(entry["size"]), entry["blocks"])
        except (ValueError, TypeError) as error:
            raise unlike(where, f"{entry['name']}: {str(error)[:200]}", "the hash of each block") from error


class _FileEntry(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    name: str
    size: Size
    blocks: list[Any]  # `BlockHashes` checks them: there may be millions


def check_files(where: Path, files: Sequence[FileRecord], block_bytes: int) -> None:
    """Raise BigtrainError where files of a manifest have one name, or not a hash for each block."""
    check_names(where, [file.name for file in files])
    for file in files:
        if not file.has_blocks_of(block_bytes):
            found = f"{file.name}: {len(file.blocks):,} blocks of {block_bytes:,} bytes for {file.size:,} bytes"
            raise unlike(where, found, "a hash for each block")


def check_names(where: Path, files: Iterable[str]) -> None:
    """Raise BigtrainError where files that a manifest names have one name, or that of the manifest."""
    names = {where.name}
    for name in files:
        if name in names:
            raise unlike(where, f"{name} twice", "files of different names, and none of this one")
        names.add(name)


def unlike(where: Path, found: str, wanted: str) -> BigtrainError:
    """The error for a file of a dataset that says what bigtrain does not write, though its hash may be right."""
    fix = "get it again from a source that you trust, or use the version of bigtrain that wrote it"
    return BigtrainError(f"{where} is not as this version of bigtrain writes it", found=found, wanted=wanted, fix=fix)


def changed_error(path: Path, found: str, wanted: str) -> BigtrainError:
    """The error for a file of a dataset whose content has changed."""
    fix = "restore the file, or remove its folder and build the data again"
    return BigtrainError(f"{path} was changed after it was written", found=found, wanted=wanted, fix=fix)

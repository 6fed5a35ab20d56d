"""The manifest of a dataset. It is written last, and commits the shards beside it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, wraps
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, ParamSpec, TypeVar, overload

import xxhash
from pydantic import Field
from typing_extensions import TypedDict

from bigtrain.base import (
    STRICT,
    BigtrainError,
    as_entry,
    bare_name,
    parse_json,
    read_regular,
    write_atomically,
)
from bigtrain.config import LabelKind
from bigtrain.data.format.hashing import canonical_json, identity
from bigtrain.data.format.labels import FIXED_NAMES, MOST_NAMES, LabelScheme

FORMAT = 1
LABELLED_FORMAT = 2
"""Of datasets with a label for each token. Those without are written in format 1, as before."""
HASH_BYTES = 16
BLOCK_BYTES = 4 << 20
MANIFEST = "manifest.json"
LARGEST = 1 << 30
"""Bytes of a manifest. One of 10^13 tokens, which is ten million blocks, has some 400 million."""
LARGEST_BLOCK = 1 << 28
"""Bytes of a block, which is read into memory whole."""

Size = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Copied = TypeVar("Copied", int, str)
Verified = TypeVar("Verified")


def without_gc(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function with the garbage collector off, which would take half of the time of parsing a large file."""

    @wraps(function)
    def wrapped(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        was_on = gc.isenabled()
        gc.disable()
        try:
            return function(*arguments, **keywords)
        finally:
            if was_on:
                gc.enable()

    return wrapped


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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockHashes) and self._bytes == other._bytes

    def __hash__(self) -> int:
        return hash(self._bytes)


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


@dataclass(frozen=True)
class ShardSize:
    """Counts and files of a shard."""

    tokens: int
    documents: int
    files: Sequence[FileSize]
    """The `.tok` file, then the `.doc` file; of a labelled dataset then the `.lab` file."""


@dataclass(frozen=True)
class ShardRecord(ShardSize):
    """The entry of a shard in the manifest."""

    files: Sequence[FileRecord]

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON types."""
        return {**vars(self), "files": [file.to_json() for file in self.files]}

    @classmethod
    def from_json(cls, value: object, where: Path) -> ShardRecord:
        """The inverse of `to_json`. Raises BigtrainError as `FileRecord.from_json` does."""
        entry = as_entry(_ShardEntry, value, where)
        files = [FileRecord.from_json(file, where) for file in entry["files"]]
        if entry["documents"] > entry["tokens"]:
            raise unlike(
                where, f"{entry['documents']:,} documents of {entry['tokens']:,} tokens", "a token for each document"
            )
        return cls(copied(entry["tokens"]), copied(entry["documents"]), files)


class _ShardEntry(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    tokens: Positive
    documents: Annotated[int, Field(ge=1, lt=2**32)]  # `document_index.py` has 32 bits for one
    files: Annotated[list[Any], Field(min_length=2, max_length=3)]


@dataclass(frozen=True)
class DatasetManifest:
    """The contents of a dataset: one split of one source."""

    source: str
    split: str
    dtype: str
    """`<u2` or `<u4`."""
    vocab_size: int
    """Every token id is below this."""
    special_ids: dict[str, int]
    """`end_of_text`: the token that closes each document."""
    tokenizer: str
    """Hash of the tokenizer that made the ids."""
    parents: dict[str, str]
    """Hashes of what the dataset was made from: tokenizer and corpus."""
    shards: list[ShardRecord]
    block_bytes: int = BLOCK_BYTES
    format: int = FORMAT
    begin_of_text: dict[str, Any] | None = None
    """What each document begins with, as `BeginOfText.to_json` gives it. None, which no manifest spells out, where it
    is the first token of its text."""
    labels: LabelKind | None = None
    """What the labels of the tokens mean. None, which no manifest spells out, where there are none."""
    label_names: tuple[str, ...] | None = None
    """The labels in the order of their numbers. None, which no manifest spells out, where the kind of labels says it,
    or where there are none."""

    @property
    def label_scheme(self) -> LabelScheme | None:
        """Names and numbers of the labels; None where there are none."""
        return LabelScheme.of(self.labels, self.label_names)

    @cached_property
    def dataset_id(self) -> str:
        """The hash of the manifest. It is a Merkle root, since the manifest has the hashes of the blocks."""
        return identity(self._content())

    @property
    def end_of_text(self) -> int:
        """Id of the token that closes each document."""
        return self.special_ids["end_of_text"]

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents in all shards."""
        return sum(shard.documents for shard in self.shards)

    def write(self, directory: Path) -> None:
        """Write the manifest, which commits the dataset."""
        totals = {"tokens": self.tokens, "documents": self.documents}
        content = {**self._content(), "dataset_id": self.dataset_id, **totals}
        write_atomically(directory / MANIFEST, canonical_json(content))

    def _content(self) -> dict[str, Any]:
        """The content that the dataset id is a hash of."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in (
            "begin_of_text",
            "labels",
            "label_names",
        ):  # so that the ids of datasets from before stay as they were
            if content[name] is None:
                del content[name]
        return {**content, "shards": [shard.to_json() for shard in self.shards]}

    @classmethod
    def read(cls, directory: Path) -> DatasetManifest:
        """Read a dataset's manifest. Raises BigtrainError if it is missing, changed, or of another format."""
        missing = BigtrainError(
            f"there is no dataset in {directory}", fix="build the data first: bigtrain data build CONFIG"
        )
        fix = "build the data again, or use the version of bigtrain that wrote it"
        return read_verified(
            directory / MANIFEST,
            cls._from_json,
            "dataset_id",
            ("tokens", "documents"),
            (FORMAT, LABELLED_FORMAT),
            missing,
            fix,
        )

    @classmethod
    def _from_json(cls, value: object, where: Path) -> DatasetManifest:
        entry = as_entry(_ManifestEntry, value, where)
        shards = [ShardRecord.from_json(shard, where) for shard in entry["shards"]]
        names = entry.get("label_names")
        of_names = {"label_names": None if names is None else tuple(names)}
        manifest = cls(**{**entry, **of_names, "shards": shards})  # type: ignore[arg-type]
        width = int(manifest.dtype[-1])
        check_files(where, [file for shard in shards for file in shard.files], manifest.block_bytes)
        if manifest.vocab_size > 256**width or manifest.end_of_text >= manifest.vocab_size:
            found = f"{manifest.vocab_size:,} ids of {width} bytes, end of text {manifest.end_of_text:,}"
            raise unlike(where, found, "ids that fit, and an end of text among them")
        if (manifest.label_names is not None) != (manifest.labels is not None and manifest.labels not in FIXED_NAMES):
            raise unlike(where, f"labels {manifest.labels}, names {names}"[:200], "names of classes and tags alone")
        scheme = manifest.label_scheme
        widths = [width] if scheme is None else [width, scheme.dtype.itemsize]
        if (manifest.format == LABELLED_FORMAT) != (manifest.labels is not None):
            raise unlike(where, f"format {manifest.format}, labels {manifest.labels}", "labels in format 2 alone")
        for shard in shards:
            if len(shard.files) != len(widths) + 1:
                raise unlike(where, f"{len(shard.files)} files of a shard", f"{len(widths) + 1}")
            for file, bytes_each in zip([shard.files[0], *shard.files[2:]], widths, strict=True):
                if file.size != shard.tokens * bytes_each:
                    found = f"{file.name}: {file.size:,} bytes, {shard.tokens:,} tokens"
                    raise unlike(where, found, f"{bytes_each} bytes a token")
        if manifest.tokens >= 2**63 or manifest.block_bytes % width:
            raise unlike(where, f"{manifest.tokens:,} tokens, {manifest.block_bytes:,} bytes a block", "whole tokens")
        return manifest


class _SpecialIds(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    end_of_text: Size


class _ManifestEntry(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    source: str
    split: Literal["train", "validation"]
    dtype: Literal["<u2", "<u4"]
    vocab_size: Positive
    special_ids: _SpecialIds
    tokenizer: str
    parents: dict[str, str]
    shards: Annotated[list[Any], Field(max_length=2**31)]
    block_bytes: Annotated[int, Field(ge=1, le=LARGEST_BLOCK)]
    begin_of_text: NotRequired[dict[str, Any]]  # `BeginOfText.from_json` checks it
    labels: NotRequired[LabelKind]
    label_names: NotRequired[Annotated[list[str], Field(min_length=1, max_length=MOST_NAMES)]]
    format: int


def check_files(where: Path, files: Sequence[FileRecord], block_bytes: int) -> None:
    """Raise BigtrainError where files of a manifest have one name, or not a hash for each block."""
    names = {where.name}
    for file in files:
        if file.name in names:
            raise unlike(where, f"{file.name} twice", "files of different names, and none of this one")
        names.add(file.name)
        if not file.has_blocks_of(block_bytes):
            found = f"{file.name}: {len(file.blocks):,} blocks of {block_bytes:,} bytes for {file.size:,} bytes"
            raise unlike(where, found, "a hash for each block")


@without_gc
def read_verified(
    path: Path,
    from_json: Callable[[object, Path], Verified],
    id_name: str,
    totals: Sequence[str],
    formats: Collection[int],
    missing: BigtrainError,
    fix: str,
) -> Verified:
    """Read a JSON file that holds a hash of its own content.

    Args:
        path: the file.
        from_json: makes the object from the content and the path.
        id_name: the key of the hash, and the cached property of the object.
        totals: keys that are not part of the content, but properties of the object.
        formats: those that are read.
        missing: the error for a missing file.
        fix: the fix for another format.

    Raises:
        BigtrainError: the file is missing, changed, of another format, or has a path in place of the name of a file.
    """
    try:
        value = parse_json(read_regular(path, LARGEST), path)
    except FileNotFoundError:
        raise missing from None
    if not isinstance(value, dict):
        raise changed_error(path, f"a JSON {type(value).__name__}", "a manifest as bigtrain wrote it")
    found = value.get("format")
    if isinstance(found, bool | float) or found not in formats:
        raise BigtrainError(
            f"{path} is of a format that this version of bigtrain does not read",
            found=f"format {found!r}"[:100],
            wanted=f"format {' or '.join(map(str, sorted(formats)))}",
            fix=fix,
        )
    recorded = {name: value.pop(name, None) for name in (id_name, *totals)}
    try:
        actual_id = identity(value)
    except (ValueError, RecursionError) as error:  # nan, or half of a surrogate pair
        raise changed_error(
            path, f"{type(error).__name__}: {str(error)[:200]}", "a manifest as bigtrain wrote it"
        ) from error
    if recorded[id_name] != actual_id:
        wanted = f"{actual_id}, the hash of its content"
        raise changed_error(path, f"{id_name.replace('_', ' ')} {recorded[id_name]!r:.100}", wanted)
    verified = from_json(value, path)
    for name in totals:
        if recorded[name] != (counted := getattr(verified, name)):
            raise changed_error(path, f"{name} {recorded[name]!r:.100}", f"{counted}, which its shards add up to")
    vars(verified)[id_name] = actual_id  # as cached_property keeps it
    return verified


def unlike(where: Path, found: str, wanted: str) -> BigtrainError:
    """The error for a file of a dataset that says what bigtrain does not write, though its hash may be right."""
    fix = "get it again from a source that you trust, or use the version of bigtrain that wrote it"
    return BigtrainError(f"{where} is not as this version of bigtrain writes it", found=found, wanted=wanted, fix=fix)


def changed_error(path: Path, found: str, wanted: str) -> BigtrainError:
    """The error for a file of a dataset whose content has changed."""
    fix = "restore the file, or remove its folder and build the data again"
    return BigtrainError(f"{path} was changed after it was written", found=found, wanted=wanted, fix=fix)

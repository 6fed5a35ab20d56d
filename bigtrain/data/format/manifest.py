"""The manifest of a dataset. It is written last, and commits the shards beside it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NotRequired, ParamSpec, TypeVar

from pydantic import Field
from typing_extensions import TypedDict

from bigtrain.base import (
    STRICT,
    BigtrainError,
    as_entry,
    parse_json,
    read_regular,
)
from bigtrain.config import LabelKind
from bigtrain.data.format import shard_table
from bigtrain.data.format.file_record import (
    BLOCK_BYTES,
    LARGEST,
    LARGEST_BLOCK,
    FileRecord,
    FileSize,
    Positive,
    Size,
    changed_error,
    copied,
    unlike,
)
from bigtrain.data.format.hashing import canonical_json, identity
from bigtrain.data.format.labels import FIXED_NAMES, MOST_NAMES, LabelScheme
from bigtrain.data.format.shard_table import FetchPart, ShardTable, parts_of, read_shards, root_of, write_files

FORMAT = 1
LABELLED_FORMAT = 2
"""Of datasets with a label for each token. Those without are written in format 1, as before."""
PARTS_FORMAT = 3
"""Of datasets of PARTS_FROM shards and more, with labels or without: a root of parts, see `shard_table.py`."""
MANIFEST = "manifest.json"

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
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

    COUNTS: ClassVar[tuple[str, ...]] = ("tokens", "documents")

    files: Sequence[FileRecord]

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON types."""
        return {**vars(self), "files": [file.to_json() for file in self.files]}

    @classmethod
    def from_json(cls, value: object, where: Path) -> ShardRecord:
        """The inverse of `to_json`. Raises BigtrainError as `FileRecord.from_json` does."""
        entry = as_entry(_ShardEntry, value, where)
        files = [FileRecord.from_json(file, where) for file in entry["files"]]
        if (fault := _fault(entry["tokens"], entry["documents"])) is not None:
            raise unlike(where, fault, "a token for each document")
        return cls(copied(entry["tokens"]), copied(entry["documents"]), files)

    @classmethod
    def of_row(cls, counts: Mapping[str, int], files: Sequence[FileRecord]) -> ShardRecord:
        """The entry with these numbers and files."""
        return cls(**counts, files=files)

    @classmethod
    def check(cls, table: ShardTable[ShardRecord], where: Path) -> None:
        """Raise BigtrainError where a shard has more documents than tokens."""
        for tokens, documents in zip(table.counts["tokens"], table.counts["documents"], strict=True):
            if (fault := _fault(tokens, documents)) is not None:
                raise unlike(where, fault, "a token for each document")


def _fault(tokens: int, documents: int) -> str | None:
    """What is wrong with a shard of these numbers; None where nothing is. `document_index.py` has 32 bits for one."""
    return None if documents <= tokens and documents < 2**32 else f"{documents:,} documents of {tokens:,} tokens"


class _ShardEntry(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    tokens: Positive
    documents: Positive
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
    shards: Sequence[ShardRecord]
    block_bytes: int = BLOCK_BYTES
    format: int | None = None
    """FORMAT, LABELLED_FORMAT or PARTS_FORMAT. Default: the one that a dataset of so many shards is written in."""
    begin_of_text: dict[str, Any] | None = None
    """What each document begins with, as `BeginOfText.to_json` gives it. None, which no manifest spells out, where it
    is the first token of its text."""
    labels: LabelKind | None = None
    """What the labels of the tokens mean. None, which no manifest spells out, where there are none."""
    label_names: tuple[str, ...] | None = None
    """The labels in the order of their numbers. None, which no manifest spells out, where the kind of labels says it,
    or where there are none."""

    def __post_init__(self) -> None:
        if self.format is None:
            whole = FORMAT if self.labels is None else LABELLED_FORMAT
            object.__setattr__(self, "format", PARTS_FORMAT if len(self.shards) >= shard_table.PARTS_FROM else whole)

    @cached_property
    def table(self) -> ShardTable[ShardRecord]:
        """The shards as columns."""
        return ShardTable.of(ShardRecord, self.shards)

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
        return sum(self.table.counts["tokens"])

    @property
    def documents(self) -> int:
        """Documents in all shards."""
        return sum(self.table.counts["documents"])

    def files(self) -> Iterator[tuple[str, bytes]]:
        """The names and contents of its files: the parts, if it has some, and last what commits the dataset."""
        if self.format == PARTS_FORMAT:
            yield from parts_of(self.table)
        totals = {"tokens": self.tokens, "documents": self.documents}
        yield MANIFEST, canonical_json({**self._content(), "dataset_id": self.dataset_id, **totals})

    def write(self, directory: Path) -> None:
        """Write the manifest, which commits the dataset."""
        write_files(directory, self.files())

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
        in_parts = self.format == PARTS_FORMAT
        return {**content, "shards": root_of(self.table) if in_parts else [shard.to_json() for shard in self.shards]}

    @classmethod
    def read(cls, directory: Path, fetch: FetchPart | None = None) -> DatasetManifest:
        """Read a dataset's manifest.

        Args:
            directory: the folder of the shards.
            fetch: brings a part of the manifest there, when hashes in it are asked for. Default: all of them are there.

        Raises:
            BigtrainError: it is missing, changed, or of another format.
        """
        missing = BigtrainError(
            f"there is no dataset in {directory}", fix="build the data first: bigtrain data build CONFIG"
        )
        fix = "build the data again, or use the version of bigtrain that wrote it"
        return read_verified(
            directory / MANIFEST,
            partial(cls._from_json, fetch),
            "dataset_id",
            ("tokens", "documents"),
            (FORMAT, LABELLED_FORMAT, PARTS_FORMAT),
            missing,
            fix,
        )

    @classmethod
    def _from_json(cls, fetch: FetchPart | None, value: object, where: Path) -> DatasetManifest:
        entry = as_entry(_ManifestEntry, value, where)
        names = entry.get("label_names")
        of_names = {"label_names": None if names is None else tuple(names)}
        in_parts = entry["format"] == PARTS_FORMAT
        shards = read_shards(ShardRecord, entry["shards"], where, entry["block_bytes"], fetch, in_parts=in_parts)
        manifest = cls(**{**entry, **of_names, "shards": shards})  # type: ignore[arg-type]
        width = int(manifest.dtype[-1])
        if manifest.vocab_size > 256**width or manifest.end_of_text >= manifest.vocab_size:
            found = f"{manifest.vocab_size:,} ids of {width} bytes, end of text {manifest.end_of_text:,}"
            raise unlike(where, found, "ids that fit, and an end of text among them")
        if (manifest.label_names is not None) != (manifest.labels is not None and manifest.labels not in FIXED_NAMES):
            raise unlike(where, f"labels {manifest.labels}, names {names}"[:200], "names of classes and tags alone")
        scheme = manifest.label_scheme
        if manifest.format == (FORMAT if manifest.labels is not None else LABELLED_FORMAT):
            raise unlike(where, f"format {manifest.format}, labels {manifest.labels}", "labels in format 2 or 3 alone")
        widths = [width, None] if scheme is None else [width, None, scheme.dtype.itemsize]
        if shards and len(manifest.table.sizes) != len(widths):
            raise unlike(where, f"{len(manifest.table.sizes)} files of a shard", f"{len(widths)}")
        for bytes_each, files, sizes in zip(widths, manifest.table.names, manifest.table.sizes, strict=False):
            for tokens, file, size in zip(manifest.table.counts["tokens"], files, sizes, strict=True):
                if bytes_each is not None and size != tokens * bytes_each:
                    found = f"{file}: {size:,} bytes, {tokens:,} tokens"
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
    shards: list[Any] | dict[str, Any]
    block_bytes: Annotated[int, Field(ge=1, le=LARGEST_BLOCK)]
    begin_of_text: NotRequired[dict[str, Any]]  # `BeginOfText.from_json` checks it
    labels: NotRequired[LabelKind]
    label_names: NotRequired[Annotated[list[str], Field(min_length=1, max_length=MOST_NAMES)]]
    format: int


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

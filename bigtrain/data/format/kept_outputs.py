"""What a teacher said of the rows of a dataset, format 1: the probabilities of the likeliest classes at each position.

    DIR/request.json         of which teacher and data: written first, so that outputs of two never mix
    DIR/<source>/00000.kept  rows in the order of their sequences, each of the same number of bytes
    DIR/<source>/00000.json  size and hashes of that file: it is finished
    DIR/manifest.json        all of this, written last; the files before it are then removed

A row of T positions, k classes and m temperatures, little-endian without padding:

    inputs     u64        digest of what the teacher read, see `digest_of_inputs`
    classes    u16[T,k]   u32 where there are more than 65,536 classes
    log_probs  f32[T,k]   of these classes at temperature 1, in nats
    scales     f32[T,m]   at temperature t the log probability of a class is log_prob / t - scale

A row is found by its number alone, so nothing but the row is read, and it is hashed by itself. The kept id is a Merkle
root, as the dataset id is: it covers every byte, the teacher's weights and the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import Field
from typing_extensions import TypedDict

from bigtrain.base import STRICT, BigtrainError, FileLock, as_entry, bare_name, read_json, write_atomically
from bigtrain.data.format.file_record import (
    LARGEST_BLOCK,
    FileRecord,
    Positive,
    Size,
    changed_error,
    check_files,
    unlike,
)
from bigtrain.data.format.hashing import canonical_json, identity
from bigtrain.data.format.manifest import MANIFEST, read_verified
from bigtrain.data.format.mapping import keep_mapped, map_file

KEPT_FORMAT = 1
REQUEST = "request.json"
FILE_BYTES = 64 << 20
"""Of a file, roughly: what a process that was killed has to do again."""
LOCK_SECONDS = 600.0
KEEP_AGAIN = "write them again into an empty folder: bigtrain keep-outputs TEACHER CONFIG"

Rows = npt.NDArray[np.void]


@dataclass(frozen=True)
class KeptRequest:
    """What outputs are of, and how they are kept."""

    teacher: str
    """Hash of the digests of its weights."""
    precision: str
    """In which the teacher computed."""
    tokenizer: str
    """Hash of the tokenizer of the data."""
    sequence_length: int
    packing: str
    objective: dict[str, Any]
    """The section, which says what the teacher read of a row."""
    positions: int
    """T."""
    classes: int
    """Those that the teacher chooses among."""
    kept: int
    """k."""
    temperatures: tuple[float, ...]

    @property
    def row(self) -> np.dtype[np.void]:
        """The type of a row."""
        kept, width = (self.positions, self.kept), "<u2" if self.classes <= 1 << 16 else "<u4"
        scales = ("scales", "<f4", (self.positions, len(self.temperatures)))
        return np.dtype([("inputs", "<u8"), ("classes", width, kept), ("log_probs", "<f4", kept), scales])

    def rows_of_a_file(self, file_bytes: int) -> int:
        """Rows of a file of so many bytes, at least one.

        Raises:
            BigtrainError: a row is larger than what is read at once.
        """
        if self.row.itemsize > LARGEST_BLOCK:
            raise BigtrainError(
                "the outputs of one row are too large to keep",
                found=f"{self.row.itemsize:,} bytes for {self.positions:,} positions of {self.kept:,} classes",
                wanted=f"at most {LARGEST_BLOCK:,} bytes",
                fix="lower distillation.kept_classes or data.sequence_length",
            )
        return max(1, file_bytes // self.row.itemsize)

    def require(self, wanted: KeptRequest, folder: Path) -> None:
        """Refuse outputs of another teacher, of other data, or kept in another way. Raises BigtrainError."""
        own, other = asdict(self), asdict(wanted)
        if differing := [name for name in own if own[name] != other[name]]:
            raise BigtrainError(
                f"the outputs in {folder} were kept for something else: another {', '.join(differing)}",
                found="; ".join(f"{name} {own[name]}" for name in differing)[:500],
                wanted="; ".join(f"{name} {other[name]}" for name in differing)[:500],
                fix=KEEP_AGAIN,
            )


class _RequestEntry(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    teacher: str
    precision: str
    tokenizer: str
    sequence_length: Positive
    packing: str
    objective: dict[str, Any]
    positions: Positive
    classes: Positive
    kept: Positive
    temperatures: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=100)]


@dataclass(frozen=True)
class KeptSource:
    """The rows of a source, of which outputs are kept."""

    name: str
    dataset_id: str
    pack_id: str | None
    """None for a packing without an index."""
    rows: int
    files: Sequence[FileRecord] = ()
    """In the order of the rows; empty until all are finished."""

    def to_json(self) -> dict[str, Any]:
        """The source as JSON types."""
        return {**vars(self), "files": [file.to_json() for file in self.files]}


class _SourceEntry(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    name: str
    dataset_id: str
    pack_id: str | None
    rows: Size
    files: list[Any]


@dataclass(frozen=True)
class KeptManifest:
    """All outputs in a folder."""

    request: KeptRequest
    sources: Sequence[KeptSource]
    rows_per_file: int
    format: int = KEPT_FORMAT

    @cached_property
    def kept_id(self) -> str:
        """The hash of all of this."""
        return identity(self._content())

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.size for source in self.sources for file in source.files)

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON types."""
        return {**self._content(), "kept_id": self.kept_id, "bytes": self.bytes}

    def _content(self) -> dict[str, Any]:
        request = {**asdict(self.request), "temperatures": list(self.request.temperatures)}
        sources = [source.to_json() for source in self.sources]
        return {"request": request, "sources": sources, "rows_per_file": self.rows_per_file, "format": self.format}

    @classmethod
    def read(cls, folder: Path, name: str = MANIFEST) -> KeptManifest:
        """Read the manifest of a folder, or its request, which is a manifest without files.

        Raises:
            BigtrainError: it is missing, changed, or of another format.
        """
        missing = BigtrainError(
            f"{folder} holds no outputs of a teacher, or not all of them",
            found=f"no {name}",
            wanted="a folder that bigtrain keep-outputs has finished",
            fix="run it, or run it again, and it goes on: bigtrain keep-outputs TEACHER CONFIG",
        )
        return read_verified(folder / name, cls._from_json, "kept_id", ("bytes",), (KEPT_FORMAT,), missing, KEEP_AGAIN)

    @classmethod
    def _from_json(cls, value: object, where: Path) -> KeptManifest:
        entry = as_entry(_KeptEntry, value, where)
        asked = as_entry(_RequestEntry, entry["request"], where)
        request = KeptRequest(**{**asked, "temperatures": tuple(asked["temperatures"])})  # type: ignore[arg-type]
        row, per_file, sources = request.row.itemsize, entry["rows_per_file"], []
        for each in entry["sources"]:
            source = as_entry(_SourceEntry, each, where)
            files = tuple(FileRecord.from_json(file, where) for file in source["files"])
            check_files(where, files, row)
            sizes = [min(per_file, source["rows"] - start) * row for start in range(0, source["rows"], per_file)]
            if files and [file.size for file in files] != sizes:
                raise unlike(where, f"{source['name']}: {len(files)} files", f"{source['rows']:,} rows of {row} bytes")
            bare_name(source["name"], where)
            sources.append(KeptSource(**{**source, "files": files}))  # type: ignore[arg-type]
        return cls(request, tuple(sources), per_file)


class _KeptEntry(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    request: Any
    sources: Annotated[list[Any], Field(min_length=1)]
    rows_per_file: Positive
    format: int


class KeptPiece(NamedTuple):
    """A file to write."""

    source: int
    """Its index in `KeptManifest.sources`."""
    number: int
    """Of the file in its source, from 0."""
    rows: range


class KeptFolder:
    """A folder that is being filled, by any number of processes, each of which may be killed.

    Args:
        folder: made if it is not there.
        wanted: what is to be kept, without files.

    Raises:
        BigtrainError: the folder holds something else, or outputs of something else.
    """

    def __init__(self, folder: Path, wanted: KeptManifest) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if not (folder / REQUEST).is_file():
                names = {path.name for path in folder.iterdir()} - {".lock"}
                if names:
                    raise BigtrainError(
                        f"{folder} holds something that bigtrain keep-outputs did not write; nothing was overwritten",
                        found=", ".join(sorted(names)[:10]),
                        wanted="an empty folder, or none",
                        fix="set distillation.kept_outputs to another folder",
                    )
                write_atomically(folder / REQUEST, canonical_json(wanted.to_json()))
        found = KeptManifest.read(folder, REQUEST)
        found.request.require(wanted.request, folder)
        if found.sources != wanted.sources:
            raise BigtrainError(
                f"the outputs in {folder} were kept for other data",
                found="; ".join(f"{each.name} {each.dataset_id}" for each in found.sources)[:500],
                wanted="; ".join(f"{each.name} {each.dataset_id}" for each in wanted.sources)[:500],
                fix=KEEP_AGAIN,
            )
        self.wanted = found
        for source in found.sources:
            (folder / source.name).mkdir(exist_ok=True)

    def pieces(self) -> list[KeptPiece]:
        """All files, in their order."""
        size = self.wanted.rows_per_file
        return [
            KeptPiece(index, number, range(start, min(start + size, source.rows)))
            for index, source in enumerate(self.wanted.sources)
            for number, start in enumerate(range(0, source.rows, size))
        ]

    def is_finished(self, piece: KeptPiece) -> bool:
        """Whether a file is there, and has the size that its record says."""
        return (self.folder / MANIFEST).is_file() or self._record(piece) is not None

    def write(self, piece: KeptPiece, rows: Rows) -> None:
        """Write a file of rows [n] of the request's type, and then its record."""
        data, size = np.ascontiguousarray(rows).data.cast("B"), rows.dtype.itemsize
        path = self._path(piece)
        write_atomically(path, data)
        hashes = [xxhash.xxh3_128_hexdigest(data[start : start + size]) for start in range(0, len(data), size)]
        record = FileRecord(path.name, len(data), hashes)
        write_atomically(path.with_suffix(".json"), canonical_json(record.to_json()))

    def commit(self) -> KeptManifest | None:
        """Write the manifest, where all files are finished; None where some are not."""
        with self._alone():
            if not (self.folder / MANIFEST).is_file():
                files: list[list[FileRecord]] = [[] for _ in self.wanted.sources]
                for piece in self.pieces():
                    record = self._record(piece)
                    if record is None:
                        return None
                    files[piece.source].append(record)
                sources = tuple(
                    replace(each, files=tuple(own)) for each, own in zip(self.wanted.sources, files, strict=True)
                )
                manifest = KeptManifest(self.wanted.request, sources, self.wanted.rows_per_file)
                write_atomically(self.folder / MANIFEST, canonical_json(manifest.to_json()))
            for piece in self.pieces():
                self._path(piece).with_suffix(".json").unlink(missing_ok=True)
        return KeptManifest.read(self.folder)

    def _path(self, piece: KeptPiece) -> Path:
        return self.folder / self.wanted.sources[piece.source].name / f"{piece.number:05d}.kept"

    def _record(self, piece: KeptPiece) -> FileRecord | None:
        path = self._path(piece).with_suffix(".json")
        if not path.is_file():
            return None
        record = FileRecord.from_json(read_json(path), path)
        return record if record.size_in(path.parent) == record.size else None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(self.folder / ".lock", names_holder=False)
        lock.acquire(LOCK_SECONDS)
        try:
            yield
        finally:
            lock.release()


class KeptFile:
    """A finished file. It is mapped at the first read, and again if many others were read since."""

    def __init__(self, path: Path, record: FileRecord, row: np.dtype[np.void]) -> None:
        self._path, self._record, self._row = path, record, row
        self._data: memoryview | None = None

    def read(self, number: int) -> np.void:
        """A row by its number in the file, a view.

        Raises:
            BigtrainError: the file is missing, or the row was changed after it was written.
        """
        keep_mapped(self)
        if (data := self._data) is None:
            self._record.check_size(self._path.parent, KEEP_AGAIN)
            data = self._data = map_file(self._path, at_random=True)
        size = self._row.itemsize
        own = data[number * size : (number + 1) * size]
        if xxhash.xxh3_128_hexdigest(own) != self._record.blocks[number]:
            raise changed_error(self._path, f"another row {number}", "the row that its manifest names")
        return np.frombuffer(own, self._row)[0]

    def unmap(self) -> None:
        """Forget the file; it is mapped again when it is needed."""
        self._data = None

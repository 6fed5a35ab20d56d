"""The result of every corpus kind, and the functions that kinds made of files share."""

from __future__ import annotations

import difflib
import glob
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bigtrain.base import BigtrainError
from bigtrain.data.build.corpus.files import CorpusFile, no_files
from bigtrain.data.format.documents import Piece
from bigtrain.data.format.hashing import identity

PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Corpus:
    """A corpus as it was found."""

    stamp: str
    """A hash over names, sizes and times, not over contents. It changes when the corpus changes."""
    summary: str
    """A description for people, e.g. `1,789 files, 31.5 MB`."""
    pieces: Callable[[], Iterator[Piece]]
    extent: int | None = None
    """Expected sum of the extents of its pieces: bytes of files, or rows. None if it is not known in advance."""


def describe_files(paths: Iterable[Path], root: Path) -> list[CorpusFile]:
    """The files in the order of their names relative to `root`."""
    files = []
    for path in paths:
        status = path.stat()
        files.append(CorpusFile(str(path), path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns))
    return sorted(files, key=lambda file: file.name)


def corpus_of_files(files: list[CorpusFile], pieces: Callable[[], Iterator[Piece]]) -> Corpus:
    """A corpus whose stamp covers name, size and modification time of its files."""
    stamp = identity([[file.name, file.size, file.version] for file in files])
    size = total_size(files)
    return Corpus(stamp, f"{len(files):,} files, {size / 1e6:,.1f} MB", pieces, extent=size)


def total_size(files: Iterable[CorpusFile]) -> int:
    """Total size of all files, in bytes."""
    return sum(file.size for file in files)


def find_files(where: str, pattern: str, suffixes: tuple[str, ...] = ()) -> list[CorpusFile]:
    """The files of a path setting: a file, a folder (all files below it) or a glob (with `**`).

    The same holds for a URL. Hidden files are left out. In a folder, only names that end in one of `suffixes` count,
    if some are given. Raises BigtrainError, which names the setting `where`, if there are no files.
    """
    if "://" in pattern:
        from bigtrain.data.build.corpus.remote_files import find_remote_files

        return find_remote_files(where, pattern, suffixes)
    path = Path(pattern).expanduser()
    if path.is_file():
        return describe_files([path], path.parent)
    if path.is_dir():
        root = path
        found = (p for p in path.rglob("*") if not suffixes or p.name.endswith(suffixes))
    else:
        fixed = _first_wildcard(path.parts)
        root = Path(*path.parts[:fixed])
        found = root.glob(str(Path(*path.parts[fixed:])))
    files = [p for p in found if p.is_file() and not any(part.startswith(".") for part in p.relative_to(root).parts)]
    if not files:
        raise no_files(where, pattern, suffixes if path.is_dir() else ())
    return describe_files(files, root)


def _first_wildcard(parts: tuple[str, ...]) -> int:
    """Index of the first part with a wildcard, or of the last part if there is none: the path does not exist."""
    wild = (index for index, part in enumerate(parts) if glob.has_magic(part))
    return next(wild, len(parts) - 1)


def grouped_by_size(files: Iterable[CorpusFile]) -> Iterator[list[CorpusFile]]:
    """Runs of consecutive files with a total size of about PIECE_BYTES."""
    group: list[CorpusFile] = []
    size = 0
    for file in files:
        if group and size + file.size > PIECE_BYTES:
            yield group
            group, size = [], 0
        group.append(file)
        size += file.size
    if group:
        yield group


def missing_field(where: str, field: str, available: Iterable[str]) -> BigtrainError:
    """The error for a record without the text field, with the nearest name that the record has."""
    names = sorted(available)
    nearest = difflib.get_close_matches(field, names, n=1)
    return BigtrainError(
        f"{where}: there is no field {field!r}",
        found=", ".join(names) or "no fields",
        wanted=field,
        fix=f"set text_field: {nearest[0]}" if nearest else "set text_field to the field that holds the text",
    )


def not_text(where: str, field: str, value: object) -> BigtrainError:
    """The error for a text field that holds something else."""
    return BigtrainError(
        f"{where}: the field {field!r} does not hold text",
        found=type(value).__name__,
        wanted="a string",
        fix="set text_field to a field that holds the text, or remove the record",
    )

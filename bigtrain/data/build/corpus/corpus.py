"""The result of every corpus kind, and the functions that kinds made of files share."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bigtrain.base import BigtrainError
from bigtrain.data.build.corpus.files import CorpusFile, FoundFiles, no_files, not_a_file, suffix_of, unicode_name
from bigtrain.data.build.corpus.local_files import find_local
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
    skipped: Mapping[str, int] = field(default_factory=dict)
    """How many files of its folder were skipped, by their suffix."""
    earlier_stamp: str | None = None
    """The stamp of the same state as the first versions saw it, if they skipped some of its files."""


def describe_files(paths: Iterable[Path], root: Path) -> list[CorpusFile]:
    """The files in the order of their names relative to `root`."""
    files = []
    for path in paths:
        status = path.stat()
        files.append(CorpusFile(str(path), path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns))
    return sorted(files, key=lambda file: file.name)


def corpus_of_files(
    files: list[CorpusFile], pieces: Callable[[], Iterator[Piece]], skipped: Mapping[str, int] | None = None
) -> Corpus:
    """A corpus whose stamp covers name, size and modification time of its files."""
    size = total_size(files)
    before = [file for file in files if file.found_before]
    return Corpus(
        _stamp(files),
        f"{len(files):,} files, {size / 1e6:,.1f} MB",
        pieces,
        extent=size,
        skipped=skipped or {},
        earlier_stamp=_stamp(before) if len(before) != len(files) else None,
    )


def _stamp(files: Iterable[CorpusFile]) -> str:
    return identity([[file.name, file.size, file.version] for file in files])


def total_size(files: Iterable[CorpusFile]) -> int:
    """Total size of all files, in bytes."""
    return sum(file.size for file in files)


def find_files(
    where: str, pattern: str, suffixes: tuple[str, ...] = (), *, before: tuple[str, ...] | None = None
) -> FoundFiles:
    """The files of a path setting: a file, a folder (all files below it) or a glob (with `**`).

    The same holds for a URL. Hidden files are left out. Links to folders are followed.

    Args:
        where: the setting, for messages.
        pattern: the path.
        suffixes: in a folder, only names that end in one of them count, in capitals or not; all names if there are
            none. The others are counted.
        before: the suffixes that the first versions took, as they are written here. Default: the same.

    Raises:
        BigtrainError: there are no files, one is no file, or a folder or server cannot be read.
    """
    found = found_files(where, pattern, suffixes, before=before)
    if not found.files:
        raise no_files(where, pattern, suffixes if found.in_folder else (), found.skipped)
    return found


def found_files(
    where: str, pattern: str, suffixes: tuple[str, ...] = (), *, before: tuple[str, ...] | None = None
) -> FoundFiles:
    """As `find_files`, but there may be none."""
    before = suffixes if before is None else before
    if "://" in pattern:
        from bigtrain.data.build.corpus.remote_files import find_remote_files

        return find_remote_files(where, pattern, suffixes, before)
    local, in_folder = find_local(where, pattern)
    files: list[CorpusFile] = []
    skipped: Counter[str] = Counter()
    for file in local:
        if in_folder and suffixes and not file.name.lower().endswith(suffixes):
            skipped[suffix_of(file.name)] += 1
            continue
        if file.problem is not None or file.status is None:
            raise not_a_file(where, file.path, file.problem or "")
        known = not file.followed and (not in_folder or not before or file.name.endswith(before))
        name = unicode_name(file.name)
        files.append(CorpusFile(file.path, name, file.status.st_size, file.status.st_mtime_ns, found_before=known))
    return FoundFiles(sorted(files, key=lambda file: file.name), skipped, in_folder)


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


def missing_field(where: str, field: str, available: Iterable[str], key: str = "text_field") -> BigtrainError:
    """The error for a record without a field that `key` of its source names, with the nearest name that it has."""
    names = sorted(available)
    nearest = difflib.get_close_matches(field, names, n=1)
    return BigtrainError(
        f"{where}: there is no field {field!r}",
        found=", ".join(names) or "no fields",
        wanted=field,
        fix=f"set {key}: {nearest[0]}" if nearest else f"set {key} to a field that the records have",
    )


def not_text(where: str, field: str, value: object) -> BigtrainError:
    """The error for a text field that holds something else."""
    fix = "set text_field to a field that holds the text, or correct the record"
    if value is None:
        fix = "set on_null: skip in the source, which leaves such documents out and counts them; or correct the record"
    return BigtrainError(
        f"{where}: the field {field!r} does not hold text",
        found="null (NoneType)" if value is None else type(value).__name__,
        wanted="a string",
        fix=fix,
    )

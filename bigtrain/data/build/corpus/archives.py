"""Files in archives: `.zip`, and `.tar`, compressed or not; and a compressed file, which is an archive of one.

Nothing is written to disk. Members are read one after the other, each up to a limit of bytes, so memory is bounded
whatever an archive says of itself. An archive that ends early, or is not whole, raises an error: what is missing never
looks like the end.
"""

from __future__ import annotations

import stat
import tarfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import BinaryIO, NamedTuple

from bigtrain.base import BigtrainError
from bigtrain.data.build.corpus.compressed import SUFFIXES as COMPRESSED
from bigtrain.data.build.corpus.compressed import opened
from bigtrain.data.build.corpus.files import CorpusFile, printable, reading, too_long, unicode_name

ZIP = (".zip",)
TAR = (".tar", ".tgz", ".tbz2", ".txz", ".tzst", *(f".tar{suffix}" for suffix in COMPRESSED))
SUFFIXES = (*ZIP, *TAR, *COMPRESSED)
"""Of all files that are read here."""
READ_BYTES = 1 << 20
LARGEST_HEADER = 1 << 20
"""Bytes of a name in a tar file, at most."""
BLOCK = tarfile.BLOCKSIZE


class ArchiveMember(NamedTuple):
    """A file in an archive."""

    name: str
    """In the corpus: that of the archive, and its own below it."""
    content: bytes | None
    """None for an archive inside the archive, which is not opened."""
    extent: int
    """About so many bytes of the archive hold it."""


def is_archive(file: CorpusFile) -> bool:
    """Whether a file is read as an archive, by its name."""
    return file.name.lower().endswith(SUFFIXES)


def members_of(file: CorpusFile, limit: int, pattern: str) -> Iterator[ArchiveMember]:
    """The files in an archive, in its order. Folders, links, devices and hidden names are left out.

    Args:
        file: the archive, which `is_archive`.
        limit: the most bytes of a member.
        pattern: only members whose name matches it, as in fnmatch, where `*` matches slashes too.

    Raises:
        BigtrainError: the archive cannot be read or is not whole, or a member is longer, is encrypted, or has a name
            that leads out of the archive.
    """
    name = file.name.lower()
    with reading(file.place):
        if name.endswith(ZIP):
            yield from _zipped(file, limit, pattern)
        elif name.endswith(TAR):
            yield from _tarred(file, limit, pattern)
        else:
            with file.open() as raw, opened(raw, file.name) as stream:
                content = _bounded(stream, limit, file.place)
                file.require_whole(raw.tell())
            yield ArchiveMember(file.name, content, file.size)


def _zipped(file: CorpusFile, limit: int, pattern: str) -> Iterator[ArchiveMember]:
    with file.open() as raw, zipfile.ZipFile(raw) as archive:
        for about in archive.infolist():
            link = stat.S_ISLNK(about.external_attr >> 16)
            name = None if about.is_dir() or link else _inner_name(file, about.filename, pattern)
            if name is None:
                continue
            if about.flag_bits & 1:
                raise BigtrainError(
                    f"{file.place} has an encrypted member",
                    found=printable(name),
                    wanted="members without a password",
                    fix="unpack the archive and name the folder, or leave the member out with `members`",
                )
            content = None
            if not _is_inner_archive(name):
                with archive.open(about) as stream:
                    content = _bounded(stream, limit, f"{file.place}: {printable(name)}")
            yield ArchiveMember(f"{file.name}/{name}", content, about.compress_size)


def _tarred(file: CorpusFile, limit: int, pattern: str) -> Iterator[ArchiveMember]:
    with file.open() as raw, opened(raw, file.name) as stream:
        forward = _Forward(stream, max(limit + 1, LARGEST_HEADER))
        position = 0
        with tarfile.TarFile(fileobj=forward, mode="r") as archive:  # type: ignore[arg-type]
            while (about := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps all of them
                name = _inner_name(file, about.name, pattern) if about.isreg() else None
                if name is None:
                    continue
                content = None
                if not _is_inner_archive(name):
                    part = archive.extractfile(about)
                    assert part is not None
                    content = _bounded(part, limit, f"{file.place}: {printable(name)}")
                now = raw.tell()
                yield ArchiveMember(f"{file.name}/{name}", content, now - position)
                position = now
        forward.require_end()
        file.require_whole(raw.tell())


def _inner_name(file: CorpusFile, name: str, pattern: str) -> str | None:
    """The name of a member below its archive; None if it is left out."""
    parts = [part for part in unicode_name(name).split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BigtrainError(
            f"{file.place} has a member with a name that leads out of the archive",
            found=printable(unicode_name(name))[:200],
            wanted="names without ..",
            fix="do not trust this archive; unpack it by hand where nothing can be overwritten",
        )
    inner = "/".join(parts)
    hidden = not parts or any(part.startswith(".") for part in parts)
    return None if hidden or not fnmatchcase(inner, pattern) else inner


def _is_inner_archive(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _bounded(stream: object, limit: int, place: str) -> bytes:
    """All bytes of a stream. Raises BigtrainError for more than `limit`."""
    parts: list[bytes] = []
    size = 0
    while data := stream.read(min(READ_BYTES, limit + 1 - size)):  # type: ignore[attr-defined]
        parts.append(data)
        size += len(data)
        if size > limit:
            raise too_long(place, limit)
    return b"".join(parts)


class _Forward:
    """A stream that tarfile can read forward: it is never asked for much at once, and remembers the last header."""

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self._stream, self._most = stream, most
        self._at = 0
        self._last = b""

    def tell(self) -> int:
        """Where the next byte is."""
        return self._at

    def seek(self, position: int) -> None:
        """Skip bytes; those after the end are not there."""
        assert position >= self._at
        while self._at < position and (data := self._stream.read(min(READ_BYTES, position - self._at))):
            self._at += len(data)

    def read(self, size: int) -> bytes:
        """The next bytes: fewer at the end."""
        if size > self._most:
            raise ValueError(f"a header of {size:,} bytes")
        parts = []
        while size and (data := self._stream.read(size)):
            parts.append(data)
            size -= len(data)
        self._last = b"".join(parts)
        self._at += len(self._last)
        return self._last

    def require_end(self) -> None:
        """Raise EOFError or ValueError where something else than the mark of the end has ended the archive.

        tarfile takes a header that is cut off or damaged for the end.
        """
        if len(self._last) < BLOCK:
            raise EOFError("it ends before the mark at the end of a tar file")
        if any(self._last):
            raise tarfile.ReadError(f"no header of a member at byte {self._at - BLOCK:,}")
        while self._stream.read(READ_BYTES):
            pass

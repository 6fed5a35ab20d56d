"""A file of a corpus, and the errors of finding and reading it."""

from __future__ import annotations

import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import zstandard

from bigtrain.base import BigtrainError
from bigtrain.data.build.corpus.compressed import SUFFIXES as COMPRESSED
from bigtrain.data.format.urls import without_query

DAMAGED = (zlib.error, zstandard.ZstdError, lzma.LZMAError, UnicodeDecodeError, zipfile.BadZipFile, tarfile.TarError)
_QUERY = re.compile(r"""(https?://[^\s?'"]+)\?[^\s'"]*""", re.IGNORECASE)
SHORT_BODIES = ("ClientPayloadError", "IncompleteRead", "IncompleteReadError")
"""What the libraries of protocols call a body that ends before the length that its server gave."""


@dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus: its path, its name in the corpus, and its size in bytes."""

    path: str
    """A path or a URL."""
    name: str
    """As in the ids of its documents: without the query of a URL, and as valid Unicode."""
    size: int
    """0 if a server does not give it."""
    version: int | str
    """Changes when the file does: its modification time in nanoseconds, or what the server gives for a URL."""
    found_before: bool = True
    """Whether the first versions found it: they skipped some suffixes, and links to folders."""

    @property
    def place(self) -> str:
        """The path for messages: in characters that print, and without a URL's query, which may hold a signature."""
        return printable(without_query(self.path))

    def open(self) -> BinaryIO:
        """Open it for reading bytes."""
        if "://" not in self.path:
            return Path(self.path).open("rb")
        import fsspec

        return io.BufferedReader(fsspec.open(self.path, "rb").open(), buffer_size=1 << 20)

    def read(self, limit: int | None = None) -> bytes:
        """The content of the file.

        Args:
            limit: the most bytes that it may have; None for any number.

        Raises:
            BigtrainError: it cannot be read, is shorter than its size, or is longer than `limit`.
        """
        with reading(self.place), self.open() as file:
            if limit is not None and self.size > limit:
                raise too_long(self.place, limit)
            content = file.read(-1 if limit is None else limit + 1)
            if limit is not None and len(content) > limit:
                raise too_long(self.place, limit)
            self.require_whole(len(content))
            return content

    def require_whole(self, read: int) -> None:
        """Raise EOFError if fewer bytes were read to the end than the file had when it was found."""
        if read < self.size:
            raise EOFError(f"it ends at byte {read:,} of {self.size:,}")


@dataclass(frozen=True)
class FoundFiles:
    """The files of a path setting."""

    files: list[CorpusFile]
    """In the order of their names."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """How many files of a folder were skipped, by their suffix, which the corpus kind does not read."""
    in_folder: bool = False
    """Whether the path is a folder, so that only the names say which files are meant."""


def unicode_name(name: str) -> str:
    """A file's name as valid Unicode: bytes that are not UTF-8 as `\\xff`."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def suffix_of(name: str) -> str:
    """What a file's name ends in, for a count: `.csv`, `.json.gz`, or `no suffix`."""
    parts = PurePosixPath(unicode_name(name).lower()).suffixes
    compressed = len(parts) > 1 and parts[-1] in COMPRESSED
    return "".join(parts[-2:] if compressed else parts[-1:]) or "no suffix"


def printable(text: str) -> str:
    """The text with what a terminal does not print, such as a line break in a file's name, as `\\n` or `\\xff`."""
    escaped = "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in text
    )
    return escaped.replace("\\udc", "\\x")


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Raise BigtrainError for any error while a file is read: damage, or a failure of the server.

    Args:
        place: the file's path for the message.
    """
    try:
        yield
    except BigtrainError:
        raise
    except Exception as error:  # each format's and each protocol's library raises its own
        raise unreadable(place, error) from error


def unreadable(place: str, error: Exception) -> BigtrainError:
    """The error for a file that cannot be read: cut off, damaged, or for another reason."""
    detail = _QUERY.sub(r"\1", " ".join(str(error).split()) or type(error).__name__)[:300]
    whole = "fetch or write the file again, then start the build again: it continues"
    if isinstance(error, EOFError) or type(error).__name__ in SHORT_BODIES:
        what, fix = f"{place} cannot be read: it is cut off ({detail})", whole
    elif is_damage(error):
        what, fix = f"{place} cannot be read: it is damaged or cut off ({detail})", whole
    else:
        what = f"{place} cannot be read: {detail}"
        fix = (
            "check that this machine reaches the server and may read there; renew a signed URL that has expired"
            if "://" in place
            else "check that the file is there and may be read, then start the build again: it continues"
        )
    return BigtrainError(what, found=type(error).__name__, wanted="a whole file", fix=fix)


def is_damage(error: Exception) -> bool:
    """Whether an error says that the bytes of a file are wrong, and not that the system or a server refused."""
    # Arrow, gzip and bz2 raise an OSError without a number for what the system did not refuse.
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return error.errno is None and type(error).__module__ in ("builtins", "gzip")
    return isinstance(error, DAMAGED) or type(error).__module__.startswith("pyarrow")


def too_long(where: str, limit: int) -> BigtrainError:
    """The error for a document, or the line that holds it, of more bytes than `max_document_bytes`."""
    return BigtrainError(
        f"{where} is too long for one document",
        found=f"more than {limit:,} bytes",
        wanted=f"at most {limit:,} bytes, max_document_bytes of the source",
        fix="cut it into several documents, or set max_document_bytes higher: a worker needs 100 times this memory",
    )


def no_files(
    where: str, pattern: str, suffixes: tuple[str, ...], skipped: Mapping[str, int] | None = None
) -> BigtrainError:
    """The error for a path without files."""
    wanted = "a file, a folder with files in it, or a glob that matches some"
    found = printable(without_query(pattern))
    return BigtrainError(
        f"{where} finds no files at its path",
        found=f"{found}, with {describe_skipped(skipped)}" if skipped else found,
        wanted=wanted + (f" ({', '.join(suffixes)})" if suffixes else ""),
        fix="correct the path; a relative one starts at the current directory",
    )


def not_a_file(where: str, path: str, found: str) -> BigtrainError:
    """The error for what has the name of a file of the corpus, but is none."""
    return BigtrainError(
        f"{where} cannot read {printable(path)}",
        found=found,
        wanted="a regular file, or a link to one",
        fix="put the file there, or remove it from the corpus",
    )


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """For people: `3 files skipped: 2 .csv, 1 .txt`."""
    total = sum(skipped.values())
    parts = ", ".join(f"{count:,} {printable(suffix)}" for suffix, count in sorted(skipped.items()))
    return f"{total:,} file{'s' * (total != 1)} skipped: {parts}"

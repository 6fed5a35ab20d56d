"""A file of a corpus, and the errors of finding and reading it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bigtrain.base import BigtrainError


@dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus: its path, its name in the corpus, and its size in bytes."""

    path: str
    """A path or a URL."""
    name: str
    size: int
    version: int | str
    """Changes when the file does: its modification time in nanoseconds, or what the server gives for a URL."""

    def open(self) -> BinaryIO:
        """Open it for reading bytes."""
        if "://" not in self.path:
            return Path(self.path).open("rb")
        import fsspec

        return io.BufferedReader(fsspec.open(self.path, "rb").open(), buffer_size=1 << 20)

    def read(self) -> bytes:
        """The content of the file. Raises BigtrainError if it cannot be read."""
        with reading(self.path), self.open() as file:
            return file.read()


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Raise BigtrainError for any error while a file is read: damage, or a failure of the server."""
    try:
        yield
    except BigtrainError:
        raise
    except Exception as error:  # each format's and each protocol's library raises its own
        raise BigtrainError(
            f"{path} cannot be read: {error}",
            found=type(error).__name__,
            wanted="a whole file",
            fix="fetch or write the file again, then start the build again: it continues",
        ) from error


def no_files(where: str, pattern: str, suffixes: tuple[str, ...]) -> BigtrainError:
    """The error for a path without files."""
    wanted = "a file, a folder with files in it, or a glob that matches some"
    return BigtrainError(
        f"{where} finds no files at its path",
        found=pattern,
        wanted=wanted + (f" ({', '.join(suffixes)})" if suffixes else ""),
        fix="correct the path; a relative one starts at the current directory",
    )

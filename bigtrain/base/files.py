"""Files and folders that are either whole or absent, whenever a process is killed or a machine loses power.

The content is written under a temporary name in the same folder, flushed to the disk, and renamed, which POSIX makes
atomic. The folder is flushed last, so that the new name is on the disk as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bigtrain.base.errors import BigtrainError

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError in this block name a file; one of writing to an open file does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)).name == temporary_of(path).name:
            error.filename, error.filename2 = str(path), None
        raise


def temporary_of(path: Path) -> Path:
    """The name under which a file is written before it gets its own."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def write_asked_for(file: Path, content: str | bytes, fix: str = "give a file in a folder of yours") -> None:
    """Write a file that the user has named, whole or not at all.

    Args:
        file: the file.
        content: its content.
        fix: what the user can do where it cannot be written.

    Raises:
        BigtrainError: it cannot be written.
    """
    try:
        write_atomically(file, content)
    except OSError as error:
        raise BigtrainError(f"{file} cannot be written: {error.strerror}", fix=fix) from None


def write_atomically(
    path: Path,
    content: str | bytes | memoryview | Callable[[BinaryIO], object],
    *,
    durable: bool = True,
    follow_link: bool = True,
) -> None:
    """Write a file whole or not at all. Until it is whole, an existing file keeps its content.

    A symbolic link stays, and the file that it points to is replaced. A pipe or a device takes the content directly.

    Args:
        path: the file. Its folder exists. One process at a time may write it.
        content: the text (written as UTF-8), the bytes, or a function that writes them to an open binary file.
        durable: flush the file and its folder to the disk, which takes milliseconds. Without it, a file that was
            written before the machine lost power may be missing or old, but a killed process never leaves a part.
        follow_link: without it, the file replaces a symbolic link: another person may have made it, in a folder of
            theirs, and it may point to anything.

    Raises:
        OSError: the disk is full or fails, or the folder may not be written. It names the file.
    """
    with naming(path):
        if follow_link or not path.is_symlink():
            if path.exists() and not path.is_file():
                with path.open("wb") as file:
                    _fill(file, content)
                return
            path = path.resolve()
        _write(path, content, durable)


def open_temporary(path: Path) -> BinaryIO:
    """Open a new, empty file under the temporary name of `path`; what was under that name before is removed.

    So a symbolic link there is never written through. Raises OSError.
    """
    temporary = temporary_of(path)
    temporary.unlink(missing_ok=True)
    return temporary.open("xb")


def _write(path: Path, content: str | bytes | memoryview | Callable[[BinaryIO], object], durable: bool) -> None:
    temporary = temporary_of(path)
    try:
        with open_temporary(path) as file:
            _fill(file, content)
            commit_file(file, path, durable=durable)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def commit_file(file: BinaryIO, path: Path, *, durable: bool = True) -> None:
    """Give an open file, which has a temporary name in the folder of `path`, this name. Raises OSError."""
    file.flush()
    if durable:
        os.fsync(file.fileno())
    Path(file.name).replace(path)
    if durable:
        fsync_directory(path.parent)


def commit_directory(temporary: Path, path: Path) -> None:
    """Flush a folder with all that is in it to the disk, then give it the name `path`. Raises OSError.

    Args:
        temporary: the folder, in the same parent folder.
        path: its name from now on; nothing or an empty folder is there.
    """
    for folder, _, names in os.walk(temporary):
        for name in names:
            _fsync(Path(folder, name))
        fsync_directory(Path(folder))
    temporary.rename(path)
    fsync_directory(path.parent)


def fsync_directory(folder: Path) -> None:
    """Flush the names in a folder to the disk. Raises OSError."""
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill(file: BinaryIO, content: str | bytes | memoryview | Callable[[BinaryIO], object]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)

"""The files of a corpus on this machine, as `find -L` finds them: links to folders are followed, and circles end."""

from __future__ import annotations

import errno
import glob
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from bigtrain.base import BigtrainError
from bigtrain.data.build.corpus.files import printable

Seen = frozenset[tuple[int, int]]
"""Device and number of the folders on the way to a file."""


@dataclass(frozen=True)
class LocalFile:
    """A name that was found, which may not be that of a file."""

    path: str
    name: str
    """Relative to the folder in which the search began."""
    status: os.stat_result | None
    """None for a link to nothing."""
    followed: bool
    """Whether the search of all folders below one followed a link to it."""

    @property
    def problem(self) -> str | None:
        """Why it cannot be read as a file; None if it can."""
        if self.status is None:
            return "a link to a file that is not there"
        return None if stat.S_ISREG(self.status.st_mode) else "a pipe, a socket or a device"


def find_local(where: str, pattern: str) -> tuple[list[LocalFile], bool]:
    """What a path setting names, hidden names left out, and whether it is a folder.

    Args:
        where: the setting, for messages.
        pattern: a file, a folder, or a glob with `*`, `?`, `[...]` and `**`. A name that exists is no pattern.

    Raises:
        BigtrainError: a folder cannot be read.
    """
    try:
        path = Path(pattern).expanduser()
    except RuntimeError:  # ~name of no user
        path = Path(pattern)
    try:
        status = _status(str(path))
        if status is not None and not stat.S_ISDIR(status.st_mode):
            return [LocalFile(str(path), path.name, status, followed=False)], False
        if status is not None:
            return list(_below(str(path), "", ("**", "*"), frozenset([_key(status)]))), True
        fixed = Path(path.anchor)
        parts = list(path.parts[bool(path.anchor) :])
        while len(parts) > 1 and (not glob.has_magic(parts[0]) or (fixed / parts[0]).exists()):
            fixed /= parts.pop(0)
        status = _status(str(fixed))
        if not parts or status is None or not stat.S_ISDIR(status.st_mode):
            return [], False
        found = _below(str(fixed), "", tuple(parts), frozenset([_key(status)]))
        return list({file.name: file for file in found}.values()), False
    except ValueError as error:  # NUL in the name
        raise _refused(where, pattern, str(error)) from error
    except OSError as error:
        raise _refused(where, str(error.filename or pattern), error.strerror or str(error)) from error


def _below(folder: str, name: str, parts: tuple[str, ...], seen: Seen) -> Iterator[LocalFile]:
    """What matches the parts of a pattern in a folder and below it."""
    todo = [(folder, name, parts, seen, False)]
    while todo:
        folder, name, parts, seen, followed = todo.pop()
        anywhere = parts[0] == "**"
        part, rest = (parts[1] if len(parts) > 1 else "*", parts[2:]) if anywhere else (parts[0], parts[1:])
        if anywhere and part == "**":
            todo.append((folder, name, parts[1:], seen, followed))
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                inner = f"{name}{entry.name}"
                status = _status(entry.path)
                matches = entry.name == part or fnmatchcase(entry.name, part)
                if status is None or not stat.S_ISDIR(status.st_mode):
                    if matches and not rest:
                        yield LocalFile(entry.path, inner, status, followed)
                    continue
                if _key(status) in seen:
                    continue
                way = seen | {_key(status)}
                if matches and rest:
                    todo.append((entry.path, f"{inner}/", rest, way, followed))
                if anywhere:
                    todo.append((entry.path, f"{inner}/", parts, way, followed or entry.is_symlink()))


def _status(path: str) -> os.stat_result | None:
    """Of what a path leads to; None if that is nothing, or a circle of links."""
    try:
        return os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _refused(where: str, path: str, found: str) -> BigtrainError:
    return BigtrainError(
        f"{where} cannot look into {printable(path)}",
        found=found,
        wanted="a path that this user may read",
        fix="correct the path or its permissions; a folder that cannot be read is not left out",
    )

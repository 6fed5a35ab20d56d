"""An error of the operating system about a file or a folder, as a message for the user.

`disk_error` is the one place that turns an OSError into a BigtrainError. It is called where errors leave the program:
by the command line, by the launcher, and where all ranks agree on an error. Where BIGTRAIN_TRACEBACK is set, a
traceback is printed as well.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from bigtrain.base.errors import BigtrainError
from bigtrain.base.launcher_protocol import has_trained

TRACEBACK = "BIGTRAIN_TRACEBACK"
"""Environment variable: where it is set and not 0, errors are printed with the traceback of where they were found."""

_ROOM = "free space on that disk, or choose a folder on another one"
_RIGHTS = "give this user the right to it (ls -ld, chown, chmod), or choose another folder"
_DISK = "check that disk and its server (df, mount, dmesg), or choose a folder on another one"
_EXPLANATIONS: dict[int, tuple[str, str]] = {
    errno.EACCES: ("this user may not do that there", _RIGHTS),
    errno.EPERM: ("this user may not do that there", _RIGHTS),
    errno.EROFS: ("that file system can only be read", "mount it for writing, or choose another folder"),
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the quota of this user on that disk is used up", _ROOM),
    errno.EFBIG: ("the file system does not hold files of that size", "choose a folder on another one"),
    errno.ENAMETOOLONG: ("the name, or a part of it, is too long for the file system", "choose a shorter name"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "correct the path, or move that file away"),
    errno.EISDIR: ("a folder is there, where a file was expected", "correct the path, or move that folder away"),
    errno.EEXIST: ("something else is there already", "correct the path, or move away what is there"),
    errno.ENOTEMPTY: ("that folder is not empty", "correct the path, or move away what is there"),
    errno.ELOOP: ("its symbolic links lead in a circle", "correct the links, or choose another path"),
    errno.ENOENT: ("there is no such file or folder", "correct the path, or create what is missing"),
    errno.EIO: ("the disk reports an error", _DISK),
    errno.ESTALE: ("the server of that disk no longer knows the file", _DISK),
    errno.ENODEV: ("the device is gone, or cannot do that", _DISK),
    errno.ENXIO: ("the device is gone, or nothing reads from that pipe", _DISK),
    errno.EMFILE: ("this process has too many files open", "raise the limit of open files (ulimit -n)"),
    errno.ENFILE: ("this machine has too many files open", "raise the limit of open files (sysctl fs.file-max)"),
}
_WITHOUT_NAME = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE})
"""Errors of a disk also where they name no file; writing to an open file names none."""
_LOOP = "Symlink loop from "
_NO_TEMPORARY_FOLDER = "No usable temporary directory"


def disk_error(error: BaseException, path: Path | str | None = None) -> BigtrainError | None:
    """Return the message for an error about a file or a folder; None for any other error.

    Errors of the network are others, and so are all errors of a process that has done a step of a training. There a
    disk that fails is a crash: the launcher starts the run again, from its newest checkpoint.

    Args:
        error: an OSError that names a file, or one of a full or failing disk; or Python's ValueError about NUL in a
            path.
        path: the file, if it is known where the error names none.
    """
    if has_trained():
        return None
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return BigtrainError(
            f"{_visible(path) if path else 'a path'} holds the character NUL, which no path can hold",
            found=str(error),
            fix="correct the path in the configuration, or in the file that names it",
        )
    if isinstance(error, RuntimeError) and str(error).startswith(_LOOP):  # of pathlib, before Python 3.13
        looped = str(error).removeprefix(_LOOP).strip("'")
        return explained(OSError(errno.ELOOP, os.strerror(errno.ELOOP)), f"{_visible(path or looped)} cannot be used")
    if not isinstance(error, OSError):
        return None
    if isinstance(error, FileNotFoundError) and _NO_TEMPORARY_FOLDER in str(error):
        return _without_temporary_folder(error)
    named = path if path is not None else _named_by(error)
    if named is None and error.errno not in _WITHOUT_NAME:
        return None
    return explained(error, f"{_visible(named)} cannot be used" if named else "a file cannot be read or written", named)


def explained(error: OSError, what: str, path: Path | str | None = None, fix: str | None = None) -> BigtrainError:
    """Return the message for an OSError, with its cause in plain words and what to do about it.

    Args:
        error: the error.
        what: the first sentence of the message; it names the path.
        path: the file or folder, to look for a link on the way to it that leads nowhere.
        fix: what to do. Default: what usually helps against this cause.
    """
    cause, remedy = _EXPLANATIONS.get(error.errno or 0, ("", _DISK))
    if path is not None and (broken := broken_part(Path(path))) is not None:
        cause, remedy = broken
    reason = error.strerror or str(error)
    found = f"{cause} ({reason})" if cause else reason
    return BigtrainError(what, found=f"{found}, on {socket.gethostname()}", fix=fix or remedy)


def check_writable(folder: Path, what: str, *, create: bool = True) -> None:
    """Create a folder where it is missing, and see that this process can write a file in it.

    Args:
        folder: the folder.
        what: the key of the settings, or the words, that it is known by: `run_dir`.
        create: whether a missing folder is created.

    Raises:
        BigtrainError: it cannot be written.
    """
    probe = folder / f".bigtrain-probe-{socket.gethostname()[:64]}-{os.getpid()}-{threading.get_native_id()}"
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        with probe.open("xb") as file:
            file.write(b"bigtrain")  # a full disk takes an empty file
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        raise explained(error, f"{what} {_visible(folder)} cannot be written", folder) from error


def check_temporary_folder() -> str | None:
    """See that there is a folder for temporary files; return a warning where it is not the one that TMPDIR names.

    Raises:
        BigtrainError: there is none.
    """
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise _without_temporary_folder(error) from error
    wanted = os.environ.get("TMPDIR")
    if not wanted or Path(wanted).absolute() == Path(folder):
        return None
    try:
        check_writable(Path(wanted), "TMPDIR", create=False)
    except BigtrainError as error:
        return f"{error.what}: {error.found}. Temporary files go to {folder}."
    return None


def _without_temporary_folder(error: FileNotFoundError) -> BigtrainError:
    return BigtrainError(
        "there is no folder for temporary files",
        found=f"{error.strerror} on {socket.gethostname()}",
        wanted="a folder that this user can write to, with space on its disk",
        fix="set TMPDIR to such a folder",
    )


def shows_tracebacks() -> bool:
    """Whether the user wants to see where in the program an error was found."""
    return os.environ.get(TRACEBACK, "0") not in ("", "0")


def _named_by(error: OSError) -> str | None:
    """The file that an error names; None where it names none, or a URL."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    name = os.fsdecode(error.filename)
    if not name or "://" in name:
        return None
    return name if error.filename2 is None else f"{name} -> {os.fsdecode(error.filename2)}"


def _visible(path: Path | str) -> str:
    """A path in one line: long ones are cut, and NUL is shown."""
    text = str(path).replace("\0", "\\0")
    return text if len(text) <= 300 else f"{text[:200]}...{text[-60:]} ({len(text)} characters)"


def broken_part(path: Path) -> tuple[str, str] | None:
    """Return what on the way to a path leads nowhere, and what to do; None where nothing does, as far as can be seen.

    That is a link without a target, or a file in place of a folder.
    """
    try:
        for part in [*reversed(path.parents), path]:
            if part.is_symlink() and not part.exists():
                remedy = "create its target, mount the disk that it is on, or choose another path"
                return f"{part} is a link to {os.readlink(part)}, which is not there", remedy  # noqa: PTH115
            if part == path or not part.exists():
                break
            if not stat.S_ISDIR(part.stat().st_mode):
                return f"{part} is a file, not a folder", "correct the path, or move that file away"
    except (OSError, ValueError):
        return None
    return None

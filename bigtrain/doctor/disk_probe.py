"""Uses a disk in a process of its own, so that a dead disk blocks this process and not the one that started it.

    python disk_probe.py speed FOLDER BYTES SECONDS     write past the page cache, up to this size or time
    python disk_probe.py leave FOLDER NAME              create a file with this name
    python disk_probe.py look FOLDER NAME SECONDS       wait for that file: network file systems cache for a while
                                                        that a name does not exist
    python disk_probe.py remove FOLDER NAME             remove that file
    python disk_probe.py room FOLDER                    measure the free space
    python disk_probe.py lock FOLDER NAME               find out whether files there can be locked

It prints JSON: the result, or {"error": ...}. It imports only what is fast to import.
"""

import errno
import fcntl
import json
import mmap
import os
import sys
import time
from pathlib import Path

_BLOCK = 1 << 22
"""Bytes of one write."""


def speed(folder: Path, size: int, seconds: float) -> dict[str, float | bool]:
    """Measure the bytes a second that the disk itself writes."""
    path = folder / f".bigtrain-doctor-{os.getpid()}"  # starts like MARK in bigtrain/rundir/directory.py
    block = mmap.mmap(-1, _BLOCK)  # aligned, as O_DIRECT needs it
    block.write(os.urandom(1 << 16) * (_BLOCK >> 16))  # random, so that a file system cannot compress it to nothing
    handle, direct = _open(path)
    try:
        written, started = 0, time.perf_counter()
        while written < size and time.perf_counter() - started < seconds:
            written += os.write(handle, block)
        os.fsync(handle)
        taken = time.perf_counter() - started
    finally:
        os.close(handle)
        path.unlink(missing_ok=True)
    return {"bytes_per_second": written / taken, "bytes": written, "direct": direct}


def _open(path: Path) -> tuple[int, bool]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600), True
    except OSError:  # not every file system has O_DIRECT
        path.unlink(missing_ok=True)
        return os.open(path, flags, 0o600), False


def leave(folder: Path, name: str) -> dict[str, bool]:
    """Create a marker file, durably."""
    handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600)
    os.fsync(handle)
    os.close(handle)
    return {"left": True}


def look(folder: Path, name: str, seconds: float) -> dict[str, bool]:
    """Wait until the marker file is visible, or the time is over."""
    end = time.monotonic() + seconds
    while not (seen := name in os.listdir(folder)) and time.monotonic() < end:  # noqa: PTH208
        time.sleep(0.2)
    return {"seen": seen}


def remove(folder: Path, name: str) -> dict[str, bool]:
    """Remove the marker file."""
    (folder / name).unlink(missing_ok=True)
    return {"removed": True}


def room(folder: Path) -> dict[str, int | str]:
    """Measure the bytes and inodes that this user may still use, and identify the file system."""
    found = os.statvfs(folder)
    return {
        "free": found.f_bavail * found.f_frsize,
        "total": found.f_blocks * found.f_frsize,
        "files": found.f_favail if found.f_files else -1,
        "device": f"{os.stat(folder).st_dev}",  # noqa: PTH116
    }


def lock(folder: Path, name: str) -> dict[str, bool]:
    """Lock a new file with `flock`."""
    path = folder / name
    try:
        with path.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return {"flock": True}
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        return {"flock": False}
    finally:
        path.unlink(missing_ok=True)


def main(what: str, folder: str, *rest: str) -> dict[str, object]:
    """Run the command line's action; a folder that does not exist is created."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if what == "speed":
        return {**speed(path, int(rest[0]), float(rest[1]))}
    if what == "look":
        return {**look(path, rest[0], float(rest[1]))}
    if what == "room":
        return {**room(path)}
    if what == "lock":
        return {**lock(path, rest[0])}
    return {**(leave if what == "leave" else remove)(path, rest[0])}


if __name__ == "__main__":
    try:
        answer = main(*sys.argv[1:])
    except OSError as error:
        answer = {"error": f"{error.strerror or error}"}
    print(json.dumps(answer))

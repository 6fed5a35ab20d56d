"""What touches a disk, in a process of its own: one that a dead disk holds fast does not hold up who started it.

    python disk_probe.py speed FOLDER BYTES SECONDS     write so much, past the page cache, as far as time allows
    python disk_probe.py leave FOLDER NAME              leave a file with this name
    python disk_probe.py look FOLDER NAME SECONDS       wait for it that long, for network file systems remember what
                                                        was not there a moment ago
    python disk_probe.py remove FOLDER NAME
    python disk_probe.py room FOLDER                    how much room there is

Prints JSON: what was found, or {"error": ...}. Imports nothing that takes time.
"""

import json
import mmap
import os
import sys
import time
from pathlib import Path

_BLOCK = 1 << 22


def speed(folder: Path, size: int, seconds: float) -> dict[str, float | bool]:
    """Bytes a second to the disk itself."""
    path = folder / f".bigtrain-doctor-{os.getpid()}"  # begins as MARK in bigtrain/rundir/directory.py
    block = mmap.mmap(-1, _BLOCK)  # aligned, as direct writing wants it
    block.write(os.urandom(1 << 16) * (_BLOCK >> 16))  # nothing that a file system could compress to nothing
    handle, direct = _open(path)
    try:
        written, began = 0, time.perf_counter()
        while written < size and time.perf_counter() - began < seconds:
            written += os.write(handle, block)
        os.fsync(handle)
        taken = time.perf_counter() - began
    finally:
        os.close(handle)
        path.unlink(missing_ok=True)
    return {"bytes_per_second": written / taken, "bytes": written, "direct": direct}


def _open(path: Path) -> tuple[int, bool]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600), True
    except OSError:  # not every file system can
        path.unlink(missing_ok=True)
        return os.open(path, flags, 0o600), False


def leave(folder: Path, name: str) -> dict[str, bool]:
    """Leave a mark, durably."""
    handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600)
    os.fsync(handle)
    os.close(handle)
    return {"left": True}


def look(folder: Path, name: str, seconds: float) -> dict[str, bool]:
    """Whether the mark is, or comes, in sight."""
    end = time.monotonic() + seconds
    while not (seen := name in os.listdir(folder)) and time.monotonic() < end:  # noqa: PTH208
        time.sleep(0.2)
    return {"seen": seen}


def remove(folder: Path, name: str) -> dict[str, bool]:
    """Take the mark away."""
    (folder / name).unlink(missing_ok=True)
    return {"removed": True}


def room(folder: Path) -> dict[str, int | str]:
    """Free bytes and inodes for this user, and which file system it is."""
    found = os.statvfs(folder)
    return {
        "free": found.f_bavail * found.f_frsize,
        "total": found.f_blocks * found.f_frsize,
        "files": found.f_favail if found.f_files else -1,
        "device": f"{os.stat(folder).st_dev}",  # noqa: PTH116
    }


def main(what: str, folder: str, *rest: str) -> dict[str, object]:
    """Do what the command line says; the folder is made if it is not there."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    if what == "speed":
        return {**speed(place, int(rest[0]), float(rest[1]))}
    if what == "look":
        return {**look(place, rest[0], float(rest[1]))}
    if what == "room":
        return {**room(place)}
    return {**(leave if what == "leave" else remove)(place, rest[0])}


if __name__ == "__main__":
    try:
        answer = main(*sys.argv[1:])
    except OSError as error:
        answer = {"error": f"{error.strerror or error}"}
    print(json.dumps(answer))

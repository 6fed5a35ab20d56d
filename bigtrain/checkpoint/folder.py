"""Checkpoints in a folder. A crash at any instant leaves a whole checkpoint or none.

Why. A directory with the final name `step-N` appears by one rename, which POSIX makes atomic. Before the rename, every
file in it was written and fsynced, the manifest last, and then the staging directory. After the rename, the parent is
fsynced. So a process that sees `step-N/manifest.json` sees a complete manifest of complete files. A process that is
killed earlier leaves only a name that starts with a dot: nothing reads it, and the next save removes it. If the disk
loses data in spite of fsync, the hashes in the manifest show it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from bigtrain.base import check_writable, fsync_directory, reached, read_regular, write_atomically
from bigtrain.checkpoint.manifest import COMMITTED, MANIFEST, step_name
from bigtrain.checkpoint.storage import Reader, blocks

_LEFTOVER = re.compile(r"\.step-\d{8,}\.(staging|pruned|replaced-\d+)")
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Folder:
    """A directory on a local or shared file system: a `Storage`."""

    directory: Path

    def __str__(self) -> str:
        return str(self.directory)

    def location(self, step: int) -> str:
        """See Storage."""
        return str(self._final(step))

    def check_writable(self) -> None:
        """See Storage. A folder that is missing is created."""
        check_writable(self.directory, "the checkpoint folder")

    def read_record(self, name: str) -> bytes | None:
        """See Storage."""
        try:
            return read_regular(self.directory / name)
        except FileNotFoundError:
            return None

    def write_record(self, name: str, content: bytes) -> None:
        """See Storage."""
        write_atomically(self.directory / name, content)

    def steps(self) -> list[int]:
        """See Storage."""
        paths = self.directory.iterdir() if self.directory.is_dir() else ()
        return sorted(int(match[1]) for path in paths if (match := COMMITTED.fullmatch(path.name)))

    @contextmanager
    def open(self, step: int, name: str) -> Iterator[Reader]:
        """See Storage."""
        handle = os.open(self._final(step) / name, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would block
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file", str(self._final(step) / name))
            yield _OpenFile(self._final(step) / name, handle)
        finally:
            os.close(handle)

    def prepare(self, step: int) -> None:
        """See Storage."""
        if not self.directory.is_dir():
            self.directory.mkdir(parents=True, exist_ok=True)
            fsync_directory(self.directory.parent)
        for path in self.directory.iterdir():
            if _LEFTOVER.fullmatch(path.name):  # one that cannot be removed only takes space
                shutil.rmtree(path, ignore_errors=True)
        self._staging(step).mkdir()

    def file_name(self, stem: str, attempt: str) -> str:
        """See Storage. A staging directory holds the files of one attempt only."""
        return f"{stem}.safetensors"

    def write(self, step: int, name: str, data: memoryview) -> None:
        """See Storage."""
        with (self._staging(step) / name).open("xb", buffering=0) as file:
            if len(data) >= _BLOCK:
                _bypass_page_cache(file, True)
            for index, block in enumerate(blocks(data, _BLOCK)):
                if index == len(data) // _BLOCK // 2:
                    reached("save.writing")
                _write(file, block)
            os.fsync(file.fileno())

    def commit(self, step: int, manifest: bytes) -> None:
        """See Storage. A damaged checkpoint of the same name is renamed first."""
        self.write(step, MANIFEST, memoryview(manifest))
        staging, final = self._staging(step), self._final(step)
        fsync_directory(staging)
        reached("save.staged")
        replaced = final.with_name(f".{final.name}.replaced-{time.time_ns()}")
        if final.exists():
            final.rename(replaced)
        staging.rename(final)
        reached("save.renamed")
        fsync_directory(self.directory)
        shutil.rmtree(replaced, ignore_errors=True)

    def abandon(self, step: int) -> None:
        """See Storage."""
        shutil.rmtree(self._staging(step), ignore_errors=True)

    def remove(self, step: int) -> None:
        """See Storage."""
        aside = self._final(step).with_name(f".{self._final(step).name}.pruned")
        self._final(step).rename(aside)  # renamed first: a half-removed one must not look like a checkpoint
        reached("save.pruning")
        shutil.rmtree(aside)

    def _final(self, step: int) -> Path:
        return self.directory / step_name(step)

    def _staging(self, step: int) -> Path:
        return self.directory / f".{step_name(step)}.staging"


class _OpenFile:
    def __init__(self, path: Path, handle: int) -> None:
        self._path, self._handle = path, handle
        self.size = os.fstat(handle).st_size

    def __str__(self) -> str:
        return str(self._path)

    def read_into(self, start: int, target: memoryview) -> None:
        target = target.cast("B")
        done = 0
        while done < len(target):
            count = os.preadv(self._handle, [target[done:]], start + done)
            if not count:
                raise OSError(f"{self._path} ends at byte {start + done:,}, wanted {start + len(target):,}")
            done += count


def _write(file: FileIO, block: memoryview) -> None:
    """Write all of it. Bytes that do not fill whole, aligned pages go through the page cache."""
    while block:
        pages = len(block) // mmap.PAGESIZE * mmap.PAGESIZE
        if not pages:
            _bypass_page_cache(file, False)
        try:
            block = block[file.write(block[: pages or len(block)]) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _bypass_page_cache(file, False):
                raise


def _bypass_page_cache(file: FileIO, direct: bool) -> bool:
    """Write straight to the disk, or through the page cache. Returns whether that is a change.

    A copy into the page cache would take time of the processor and the memory bus from the training.
    """
    before = fcntl.fcntl(file, fcntl.F_GETFL)
    after = before | os.O_DIRECT if direct else before & ~os.O_DIRECT
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, after)
    except OSError:  # the file system does not support it
        return False
    return before != after

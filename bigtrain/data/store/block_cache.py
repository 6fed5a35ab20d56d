"""Verified blocks of remote files on local disk, within a budget of bytes, shared by all processes of a host.

    DIR/blocks/ab/abcd...   a block, named by its xxh3-128
    DIR/new/                files that are being written; renamed when whole
    DIR/locks/abc           held while a block with this prefix is fetched, so that one process fetches it for all
    DIR/ledger              bytes in blocks/; held while a block is added and others are removed

All locks are `flock`s, which end with their process. Where the file system has no `flock`, processes may fetch a block
twice, and the ledger may lag. A process that is killed leaves at most a file in new/, and a ledger that is wrong by one
block. The next process that opens the cache corrects both. Each process verifies a block when it first opens it, so a
block that was torn by a power failure is fetched again. Files are removed by unlinking: a process that has one open
keeps its mapping.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import xxhash

from bigtrain.base import BigtrainError, flock_if_supported

OPEN_BYTES = 1 << 30
"""A process keeps at most this much mapped, and no more than a quarter of the budget."""
STALE_SECONDS = 600.0
"""A file in new/ that is older than this belongs to a process that was killed."""
LOCK_SECONDS = 150.0
"""Longer than all attempts of the process that fetches (`RetryPolicy`). After this, every process tries by itself."""
POLL_SECONDS = 0.02
_BLOCK = re.compile("[0-9a-f]{32}")


class BlockCache:
    """A block cache in a folder. Threads may share one object; each process opens its own.

    Args:
        directory: a folder on local disk, which is created if it is missing.
        budget: bytes that blocks may take there. One block is always kept, and each process may keep the blocks that
            it has mapped (at most a quarter of the budget) longer.
    """

    def __init__(self, directory: Path, budget: int) -> None:
        self._directory = directory
        self._budget = budget
        self._new, self._ledger = directory / "new", directory / "ledger"
        self._open: OrderedDict[str, memoryview] = OrderedDict()
        self._open_bytes = 0
        self._verified: set[str] = set()
        self._thread_lock = threading.Lock()
        with self._disk_errors():
            for folder in (self._new, directory / "blocks", directory / "locks"):
                if folder.is_symlink():
                    raise NotADirectoryError(errno.ENOTDIR, "a symbolic link, which may lead anywhere", str(folder))
                folder.mkdir(parents=True, exist_ok=True)
            self._remove_stale()
            with self._locked_ledger() as ledger:
                _write(ledger, self._evict(budget))

    def get(self, name: str, size: int, fetch: Callable[[], bytes]) -> memoryview:
        """A block.

        Args:
            name: its xxh3-128 in hexadecimal.
            size: its bytes.
            fetch: returns its bytes, verified; called if the cache does not have it.
        """
        block = self.opened(name)
        if block is not None:
            return block
        with self._disk_errors():
            block = self._map(name, size)
            if block is None:
                with self.only_one(name):
                    block = self._map(name, size)  # another process may have fetched it in the meantime
                    if block is None:
                        block = self._add(name, fetch())
        self._keep_open(name, block)
        return block

    def opened(self, name: str) -> memoryview | None:
        """A block that this process has mapped; it becomes the most recently used one."""
        try:  # no lock: each of the two is atomic, and a block that another thread closes in between is opened again
            block = self._open[name]
            self._open.move_to_end(name)
        except KeyError:
            return None
        return block

    def holds(self, name: str) -> bool:
        """Whether the cache has a block, without reading it."""
        return name in self._open or self._path(name).exists()

    @contextmanager
    def only_one(self, name: str) -> Iterator[None]:
        """One process or thread at a time for a name, but for at most LOCK_SECONDS."""
        with self._disk_errors(), (self._directory / "locks" / name[:3]).open("ab") as lock:
            give_up = time.monotonic() + LOCK_SECONDS
            while time.monotonic() < give_up:
                try:
                    flock_if_supported(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(POLL_SECONDS)
            yield

    def place(self, path: Path, parts: Iterable[bytes]) -> None:
        """Write a file elsewhere on the same disk, whole or not at all. Several processes may write it at the same
        time."""
        with self._disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            inside = self._directory.parent.resolve()
            if not path.parent.resolve().is_relative_to(inside):
                raise NotADirectoryError(errno.ENOTDIR, f"a symbolic link that leads out of {inside}", str(path.parent))
            with self._new_file(parts) as temporary:
                temporary.rename(path)

    def _path(self, name: str) -> Path:
        return self._directory / "blocks" / name[:2] / name

    def _map(self, name: str, size: int) -> memoryview | None:
        """The block on disk, which becomes the most recently used one; None if it is missing or corrupted."""
        path = self._path(name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would block
            with os.fdopen(descriptor, "rb") as file:
                if os.fstat(file.fileno()).st_size == size > 0:
                    block = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
                    if name in self._verified or xxhash.xxh3_128_hexdigest(block) == name:
                        self._verified.add(name)
                        os.utime(file.fileno())
                        return block
        except FileNotFoundError:
            return None
        path.unlink(missing_ok=True)
        return None

    def _keep_open(self, name: str, block: memoryview) -> None:
        with self._thread_lock:
            if name not in self._open:
                self._open[name] = block
                self._open_bytes += len(block)
            limit = min(OPEN_BYTES, self._budget // 4)
            while self._open_bytes > limit and len(self._open) > 1:
                _, oldest = self._open.popitem(last=False)
                self._open_bytes -= len(oldest)

    def _add(self, name: str, data: bytes) -> memoryview:
        path = self._path(name)
        path.parent.mkdir(exist_ok=True)
        with self._new_file([data]) as temporary, self._locked_ledger() as ledger:
            total = _read(ledger)
            if total is None or total + len(data) > self._budget:
                total = self._evict(self._budget - len(data))
            temporary.rename(path)
            _write(ledger, total + len(data))
        self._verified.add(name)
        return self._map(name, len(data)) or memoryview(data)  # another process may have removed it already

    @contextmanager
    def _new_file(self, parts: Iterable[bytes]) -> Iterator[Path]:
        """A file with these bytes, which is removed if it is not renamed."""
        descriptor, name = tempfile.mkstemp(dir=self._new)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(parts)
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _evict(self, target: int) -> int:
        """Remove the least recently used blocks until those left take at most `target` bytes; returns what they take.

        If any must be removed, a tenth of the budget is freed, so that the folder is not listed for every block.
        """
        blocks = []
        for folder in os.scandir(self._directory / "blocks"):
            for entry in os.scandir(folder) if folder.is_dir(follow_symlinks=False) else ():
                if not _BLOCK.fullmatch(entry.name):
                    continue  # no file of a cache
                status = entry.stat(follow_symlinks=False)
                blocks.append((status.st_mtime_ns, entry.path, status.st_size))
        total = sum(size for _, _, size in blocks)
        if total > target:
            target -= self._budget // 10
        for _, path, size in sorted(blocks):
            if total <= target:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        return total

    def _remove_stale(self) -> None:
        for entry in os.scandir(self._new):
            try:
                if not entry.name.startswith(tempfile.gettempprefix()):
                    continue  # no file of a cache
                if time.time() - entry.stat().st_mtime > STALE_SECONDS:
                    Path(entry.path).unlink()
            except FileNotFoundError:  # renamed or removed by another process
                continue

    @contextmanager
    def _locked_ledger(self) -> Iterator[IO[bytes]]:
        descriptor = os.open(self._ledger, os.O_RDWR | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "r+b") as file:
            flock_if_supported(file, fcntl.LOCK_EX)
            yield file

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BigtrainError(
                f"the cache of remote shards in {self._directory} cannot be used",
                found=str(error),
                wanted=f"a folder that can be written, on a disk with room for data.cache_bytes {self._budget:,}",
                fix="free space, lower data.cache_bytes, or set data.dir to a folder on another disk",
            ) from error


def _read(ledger: IO[bytes]) -> int | None:
    """The number in the ledger; None if it cannot be read."""
    ledger.seek(0)
    text = ledger.read(21)
    return int(text) if len(text) == 20 and text.isdigit() else None


def _write(ledger: IO[bytes], total: int) -> None:
    ledger.seek(0)
    ledger.truncate()
    ledger.write(b"%020d" % total)
    ledger.flush()

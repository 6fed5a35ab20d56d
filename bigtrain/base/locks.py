"""One writer at a time, by `flock`, or by a file that holds the writer's name where the file system has no `flock`.

A `flock` ends with its process, however it ends. Some file systems do not have it: network disks without a lock server,
some object-store mounts and FUSE file systems. There a file NAME.owner is created, which succeeds for one process only.
It says which process that is. When that process is gone from this machine, the file is out of date and is replaced. A
process of another machine cannot be seen, so there its file has to be removed by hand.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from bigtrain.base.clock import boot_id, start_ticks
from bigtrain.base.errors import BigtrainError
from bigtrain.base.records import as_record, read_json

UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
"""What `flock` fails with where the file system does not have it."""
POLL_SECONDS = 0.2


class LockHeldError(Exception):
    """Another process holds the lock."""

    def __init__(self, holder: str, fix: str | None = None) -> None:
        super().__init__(holder)
        self.holder = holder
        """The process, for people."""
        self.fix = fix
        """What to do, where waiting may not help."""


@dataclass(frozen=True)
class LockOwner:
    """The process that holds a lock without `flock`."""

    host: str
    machine: str
    """The id of the machine's installation; empty where it has none."""
    boot: str
    """The id of this start of the machine; empty where it is unknown."""
    pids: str
    """The namespace that the process id belongs to."""
    pid: int
    started: int
    """When the process started, in ticks since the machine was started: process ids are used again."""

    @classmethod
    def this_process(cls) -> LockOwner:
        """The owner that this process is."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), boot_id() or "", _pid_namespace(), pid, start_ticks(pid) or 0)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_gone(self) -> bool:
        """Whether the process has certainly ended. A process of another machine may be there."""
        here = LockOwner.this_process()
        if (self.host, self.machine) == (here.host, here.machine) and self.machine and self.boot != here.boot:
            return bool(self.boot and here.boot)  # this machine was started again since then
        if not self.boot or (self.host, self.boot, self.pids) != (here.host, here.boot, here.pids):
            return False
        return start_ticks(self.pid) != self.started


class FileLock:
    """A lock on a file, for as long as this process runs or until `release`."""

    def __init__(self, path: Path, *, names_holder: bool = True) -> None:
        """Name the lock; nothing is locked or written yet.

        Args:
            path: the file that is locked. Its folder exists.
            names_holder: write into the file which process holds it, for the message of another one.
        """
        self.path = path
        self._names_holder = names_holder
        self._owner_file = path.with_name(f"{path.name}.owner")
        self._file: IO[str] | None = None
        self._owner: LockOwner | None = None

    @property
    def without_flock(self) -> bool:
        """Whether the lock is held by its owner file, as the file system has no `flock`."""
        return self._owner is not None

    def acquire(self, patience: float = 0.0) -> None:
        """Take the lock.

        Args:
            patience: seconds to wait for another process that holds it.

        Raises:
            LockHeldError: another process holds it.
            OSError: the file cannot be written.
        """
        give_up = time.monotonic() + patience
        while True:
            try:
                self._try()
                return
            except LockHeldError:
                if time.monotonic() >= give_up:
                    raise
            time.sleep(POLL_SECONDS)

    def release(self) -> None:
        """Let the next writer in; where the lock is not held, nothing happens."""
        if self._owner is not None and _read_owner(self._owner_file) == self._owner:
            with suppress(OSError):
                self._owner_file.unlink()
        if self._file is not None:
            self._file.close()
        self._file = self._owner = None

    def is_held(self) -> bool:
        """Whether another process holds the lock, as far as that can be seen without writing anything."""
        if self._file is not None:
            return False
        if self._held_by_owner(clear=False) is not None:
            return True
        try:
            with open(self.path, opener=_without_blocking) as file:
                return not _flock_at_once(file, fcntl.LOCK_SH)  # released at once: a process that takes it retries
        except OSError:
            return False

    def _try(self) -> None:
        if self.path.exists() and not self.path.is_file():
            raise BigtrainError(
                f"{self.path} cannot be used as a lock",
                found="a folder, a pipe or a device",
                wanted="a regular file, or none",
                fix=f"remove it: rm -r {self.path}",
            )
        file = self.path.open("a+")
        try:
            try:
                got = _flock_at_once(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                self._own()
            else:
                if not got:
                    file.seek(0)
                    raise LockHeldError(file.read(300).strip() or "a lock without a name")
                if (held := self._held_by_owner()) is not None:  # by a machine that mounts the disk without flock
                    raise held
            if self._names_holder:
                file.seek(0)
                file.truncate()
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
        except BaseException:
            file.close()
            raise
        self._file = file

    def _own(self) -> None:
        """Create the owner file. Raises LockHeldError, OSError."""
        if (held := self._held_by_owner()) is not None:
            raise held
        owner = LockOwner.this_process()
        try:
            descriptor = os.open(self._owner_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise self._held_by_owner() or LockHeldError("a process that took it at this moment") from None
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(asdict(owner)))
            file.flush()
            with suppress(OSError):
                os.fsync(descriptor)
        self._owner = owner

    def _held_by_owner(self, *, clear: bool = True) -> LockHeldError | None:
        """The owner that may be at work. With `clear`, an owner file that is out of date is removed."""
        if not self._owner_file.exists():
            return None
        owner = _read_owner(self._owner_file)
        if owner is None or not owner.is_gone():
            return LockHeldError(
                str(owner or f"{self._owner_file}, which cannot be read"),
                f"wait for it or stop it; if it is certain that it has ended, rm {self._owner_file}",
            )
        if not clear:
            return None
        aside = self._owner_file.with_name(f"{self._owner_file.name}.{uuid.uuid4().hex}")
        with suppress(OSError):
            self._owner_file.rename(aside)
            if _read_owner(aside) != owner:  # another process has replaced it in between: it keeps the lock
                aside.rename(self._owner_file)
                return self._held_by_owner()
            aside.unlink()
        return None


def flock_if_supported(file: IO[Any], operation: int) -> bool:
    """Call `flock` where the file system has it.

    Args:
        file: an open file.
        operation: of `fcntl`, such as LOCK_EX.

    Returns:
        Whether the lock is held; False where the file system has no `flock`.

    Raises:
        BlockingIOError: another process holds the lock, and `operation` has LOCK_NB.
    """
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True


def _flock_at_once(file: IO[Any], operation: int) -> bool:
    """Whether the lock was free. Raises OSError."""
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _without_blocking(path: str, flags: int) -> int:
    """Open a file; a pipe without a writer would block whoever opens it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read_owner(path: Path) -> LockOwner | None:
    """The owner in a file; None where it cannot be read, as it is being written or is not one."""
    try:
        return as_record(LockOwner, read_json(path, 1 << 16), path)
    except (OSError, BigtrainError):
        return None


def _machine() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""

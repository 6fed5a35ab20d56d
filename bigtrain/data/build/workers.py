"""Worker processes that return their results in order, and end with the process that started them."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from bigtrain.base import BigtrainError, explained
from bigtrain.data.format.documents import Document

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD_PER_WORKER = 3


class Workers:
    """A pool of `count` processes, which start at the first use. Use it as a context manager.

    Raises:
        BigtrainError: /dev/shm cannot be used.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._ahead = count * AHEAD_PER_WORKER
        self._notes = tempfile.TemporaryDirectory(prefix="bigtrain-workers-")
        self._processes: dict[int, BaseProcess] = {}
        # spawn: the tokenizers library has threads of its own, which do not survive a fork
        try:
            self._pool = ProcessPoolExecutor(
                count, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(self._notes.name,)
            )
        except OSError as error:  # it makes semaphores, which are files there
            raise explained(
                error,
                "worker processes cannot be started: their semaphores cannot be made in /dev/shm",
                fix="mount /dev/shm as a tmpfs that can be written, or free space in it (df /dev/shm)",
            ) from error

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._notes.cleanup()

    def map_in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`map(function, items)` over the processes, with a bounded number of items ahead of the consumer."""
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(self._pool.submit(function, item))
                if len(self._processes) < self._count:
                    self._processes |= {process.pid: process for process in active_children() if process.pid}
                if len(pending) >= self._ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise self._died() from None
        finally:
            for future in pending:
                future.cancel()

    def _died(self) -> BigtrainError:
        """The error for a worker that was killed. The pool ends the others with SIGTERM, another exit status."""
        at = []
        for pid, process in self._processes.items():
            process.join(timeout=10)
            note = Path(self._notes.name, str(pid))
            if process.exitcode != -signal.SIGTERM and note.exists():
                at.append(note.read_text(errors="replace").rstrip("\0"))
        where = f", at {' and '.join(at)}" if any(at) else ""
        return BigtrainError(
            f"a worker process of the build died{where}",
            found="it was killed from outside, most often for lack of memory",
            wanted="about 100 times the bytes of the longest document as memory, for each worker",
            fix="set data.workers to a smaller number and start again: finished shards are kept; or cut long documents",
        )


NOTE_BYTES = 4096
_note: int | None = None
"""A worker's open file with the document it is at."""


def note(document: Document) -> None:
    """Record for the process that started this worker which document it is at, in case the worker is killed."""
    if _note is not None:
        text = f"document {document.position} of {document.file[:1000]!r} ({len(document.text):,} characters)"
        os.pwrite(_note, text.encode(errors="replace")[:NOTE_BYTES].ljust(NOTE_BYTES, b"\0"), 0)


def _start_worker(notes: str) -> None:
    global _note
    _note = os.open(f"{notes}/{os.getpid()}", os.O_WRONLY | os.O_CREAT, 0o600)
    gc.set_threshold(200_000)  # syntax trees have no cycles; looking for them takes a third of the time to parse
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

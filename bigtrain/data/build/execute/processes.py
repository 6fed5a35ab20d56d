"""Runs tasks in processes of this machine, which end with the process that started them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from bigtrain.data.build.execute.executor import AHEAD_PER_WORKER, BuildExecutor, FailurePolicy, LostError
from bigtrain.data.build.execute.task import Attempt, packed, run_packed, unpacked
from bigtrain.data.format.work_folder import WorkFolder

Item = TypeVar("Item")
Result = TypeVar("Result")

END_SECONDS = 10.0


class Processes(BuildExecutor):
    """`count` processes, each with a thread of this process that feeds it. They start when there is work for them.

    A process that dies is replaced, and only its own task is lost.
    """

    def __init__(self, count: int, policy: FailurePolicy | None = None, folder: WorkFolder | None = None) -> None:
        super().__init__(policy, folder)
        self._count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="bigtrain-build")
        self._of_thread = threading.local()
        self._workers: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def ahead(self) -> int:
        """Enough that no worker waits for this process."""
        return self._count * AHEAD_PER_WORKER

    def submit(self, function: Callable[[Item], Result], item: Item, attempt: Attempt) -> Future[Result]:
        """Start `function(item)` when a worker is free."""
        return self._threads.submit(self._run, function, item, attempt)

    def _run(self, function: Callable[[Item], Result], item: Item, attempt: Attempt) -> Any:
        task = packed(function, item, attempt)
        worker = self._worker()
        try:
            outcome = worker.run(task)
        except LostError:
            with self._lock:
                self._workers.discard(worker)
            del self._of_thread.worker
            raise
        return unpacked(outcome)

    def _worker(self) -> _Worker:
        """The worker of this thread."""
        worker: _Worker | None = getattr(self._of_thread, "worker", None)
        if worker is None:
            with self._lock:
                if self._closed:
                    raise LostError("the build ends")
                worker = self._of_thread.worker = _Worker()
                self._workers.add(worker)
        return worker

    def close(self, *, at_once: bool) -> None:
        """End all workers."""
        with self._lock:
            self._closed = True
        if at_once:
            for worker in self._workers:
                worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.end()


class _Worker:
    """One process."""

    def __init__(self) -> None:
        # spawn: the tokenizers library has threads of its own, which do not survive a fork
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, task: bytes) -> bytes:
        """Run a task. Raises LostError if the process dies."""
        try:
            self._connection.send_bytes(task)
            return self._connection.recv_bytes()
        except (EOFError, OSError):
            self._process.join(END_SECONDS)
            raise LostError(_how_it_ended(self._process.exitcode)) from None

    def kill(self) -> None:
        """End the process in the middle of its task."""
        self._process.kill()

    def end(self) -> None:
        """End the process, which has no task."""
        with suppress(OSError):
            self._connection.send_bytes(b"")
        self._process.join(END_SECONDS)
        self._process.kill()
        self._process.join()
        self._connection.close()


def _how_it_ended(status: int | None) -> str:
    if status == -signal.SIGALRM:
        return "it took more than data.document_seconds for one document"
    if status == -signal.SIGKILL:
        return "it was killed from outside, most often for lack of memory"
    return f"it ended with {'signal' if (status or 0) < 0 else 'status'} {abs(status or 0)}"


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with suppress(EOFError):
        while task := connection.recv_bytes():
            connection.send_bytes(run_packed(task))


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

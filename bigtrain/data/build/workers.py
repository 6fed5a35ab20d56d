"""Worker processes that return their results in order, and end with the process that started them."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from types import TracebackType
from typing import TypeVar

from bigtrain.base import BigtrainError, explained

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD_PER_WORKER = 3


class Workers:
    """A pool of `count` processes, which start at the first use. Use it as a context manager.

    Raises:
        BigtrainError: /dev/shm cannot be used.
    """

    def __init__(self, count: int) -> None:
        self._ahead = count * AHEAD_PER_WORKER
        # spawn: the tokenizers library has threads of its own, which do not survive a fork
        try:
            self._pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_start_worker)
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

    def map_in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`map(function, items)` over the processes, with a bounded number of items ahead of the consumer."""
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(self._pool.submit(function, item))
                if len(pending) >= self._ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise BigtrainError(
                "a worker process of the build died",
                found="it was killed from outside, most often for lack of memory",
                fix="set data.workers to a smaller number and start again: finished shards are kept",
            ) from None
        finally:
            for future in pending:
                future.cancel()


def _start_worker() -> None:
    gc.set_threshold(200_000)  # syntax trees have no cycles; looking for them takes a third of the time to parse
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

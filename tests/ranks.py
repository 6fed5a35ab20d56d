"""Ranks that are threads of one process, with the tree of ranks that a job has between its processes."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from bigtrain.base import RankTree


class Mailboxes:
    """Messages between threads, and how many bytes each rank has sent and received."""

    def __init__(self) -> None:
        self._boxes: defaultdict[tuple[int, int], queue.SimpleQueue[bytes]] = defaultdict(queue.SimpleQueue)
        self.sent: defaultdict[int, int] = defaultdict(int)
        self.received: defaultdict[int, int] = defaultdict(int)

    def of(self, rank: int) -> _Mailbox:
        """The channel of one rank."""
        return _Mailbox(rank, self)


class _Mailbox:
    def __init__(self, rank: int, all_of_them: Mailboxes) -> None:
        self._rank, self._all = rank, all_of_them

    def send(self, message: bytes, to: int) -> None:
        self._all.sent[self._rank] += len(message)
        self._all._boxes[self._rank, to].put(message)

    def receive(self, source: int) -> bytes:
        message = self._all._boxes[source, self._rank].get(timeout=20)
        self._all.received[self._rank] += len(message)
        return message


def on_ranks(world_size: int, work: Callable[[RankTree], Any], mailboxes: Mailboxes | None = None) -> list[Any]:
    """Run `work` on every rank; its results, or the exception it raised, in rank order."""
    boxes = mailboxes or Mailboxes()
    results: list[Any] = [None] * world_size

    def run(rank: int) -> None:
        try:
            results[rank] = work(RankTree(rank, world_size, boxes.of(rank)))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results

"""A tree of ranks, along which values go up to rank 0 and down from it.

With eight children, as a host often has ranks, a tree of 100 ranks:

    rank    0  1  2 ... 7  8  9 ... 15  16 ...     64  65 ...  72 ...  99
    level 1 0 <- 1 to 7    8 <- 9 to 15            64 <- 65 to 71
    level 2 0 <- 8, 16, 24 ... 56                  64 <- 72, 80, 88, 96
    level 3 0 <- 64

No rank hears more than 7 others at a level, so time grows with the logarithm of the number of ranks. Each subtree is a
range of ranks, so values are merged in rank order.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

CHILDREN = 8


class Channel(Protocol):
    """Messages between two ranks, which arrive in the order in which they were sent."""

    def send(self, message: bytes, to: int) -> None:
        """Send to a rank, which receives it at some time."""

    def receive(self, source: int) -> bytes:
        """Wait for the next message of a rank."""


@dataclass(frozen=True)
class RankTree:
    """This process in the tree. All ranks make the same calls in the same order."""

    rank: int
    world_size: int
    channel: Channel

    def reduce(self, value: T, merge: Callable[[T, T], T]) -> T | None:
        """All ranks' values as one, on rank 0; None elsewhere.

        Args:
            value: of this rank.
            merge: makes one value of two, of lower ranks and of the ranks that follow them. It may change its first
                argument. It has to be associative.
        """
        for stride, block in self._levels():
            if parent := self.rank % block:
                self.channel.send(pickle.dumps(value), self.rank - parent)
                return None
            for child in self._children(stride, block):
                value = merge(value, pickle.loads(self.channel.receive(child)))
        return value

    def broadcast(self, value: Any) -> Any:
        """The value that rank 0 gave, on every rank."""
        message = pickle.dumps(value) if self.rank == 0 and self.world_size > 1 else b""
        for stride, block in reversed(list(self._levels())):
            if parent := self.rank % block:
                if not self.rank % stride:
                    message = self.channel.receive(self.rank - parent)
                continue
            for child in self._children(stride, block):
                self.channel.send(message, child)
        return value if self.rank == 0 else pickle.loads(message)

    def scatter(self, values: Sequence[T] | None) -> T:
        """One of the values that rank 0 gave to each rank: the n-th on rank n."""
        first, own = self.rank, list(values or ())
        for stride, block in reversed(list(self._levels())):
            if parent := self.rank % block:
                if not self.rank % stride:
                    own = pickle.loads(self.channel.receive(self.rank - parent))
                continue
            for child in self._children(stride, block):
                self.channel.send(pickle.dumps(own[child - first : child - first + stride]), child)
        return own[0]

    def _levels(self) -> Iterator[tuple[int, int]]:
        """From the leaves on: how far children are from each other, and how far parents are."""
        stride = 1
        while stride < self.world_size:
            yield stride, stride * CHILDREN
            stride *= CHILDREN

    def _children(self, stride: int, block: int) -> range:
        return range(self.rank + stride, min(self.rank + block, self.world_size), stride)

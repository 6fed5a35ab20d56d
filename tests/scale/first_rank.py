"""Rank 0 of many, alone in its process: each other rank gives what rank 0 gives, through real messages of the tree."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

from bigtrain.base import RankTree


class Echo:
    """A channel whose other ends behave as this rank does, and which counts bytes and messages.

    What a child at a level of the tree sends up is what this rank holds when that level begins.
    """

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()
        self._at_level: dict[int, bytes] = {}
        self._value: Any = None

    def send(self, message: bytes, to: int) -> None:
        self._count("sent", message)

    def receive(self, source: int) -> bytes:
        level = source & -source  # a power of two: ranks of one level of the tree have no other of them in common
        while level not in _LEVELS:
            level >>= 1
        message = self._at_level.setdefault(level, pickle.dumps(self._value))
        self._count("received", message)
        return message

    def holding(self, value: Any) -> Any:
        """Note what this rank holds now."""
        self._value = value
        return value

    def start(self) -> None:
        """Begin another reduction."""
        self._at_level.clear()

    def _count(self, direction: str, message: bytes) -> None:
        self.bytes[direction] += len(message)
        self.messages[direction] += 1


_LEVELS = frozenset(8**level for level in range(8))


class FirstRank:
    """Ranks as rank 0 of `world_size` sees them: 1 to 7 times a power of 8, so that every subtree is full."""

    rank = 0

    def __init__(self, world_size: int) -> None:
        full = max(level for level in _LEVELS if level <= world_size)
        assert world_size % full == 0, world_size
        self.world_size = world_size
        self.channel = Echo()
        self._tree = RankTree(0, world_size, self.channel)
        self.broadcast, self.scatter = self._tree.broadcast, self._tree.scatter

    def reduce(self, value: Any, merge: Callable[[Any, Any], Any]) -> Any:
        """All ranks' values as one, where all give this value."""
        self.channel.start()
        self.channel.holding(value)
        return self._tree.reduce(value, lambda lower, higher: self.channel.holding(merge(lower, higher)))

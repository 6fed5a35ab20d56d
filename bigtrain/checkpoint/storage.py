"""Where checkpoints lie: what saving, loading and clearing need of a place, be it a folder or an object store.

A step becomes visible by `commit` alone, at once and whole. Whatever was written before that is nobody's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol


class Reader(Protocol):
    """An open file."""

    size: int
    """Bytes."""

    def read_into(self, start: int, target: memoryview) -> None:
        """Fill `target`, writable and contiguous, with the bytes from `start` on.

        Raises:
            OSError: they cannot be read, or the file ends before.
        """


class Storage(Protocol):
    """A place for checkpoints. All but BigtrainErrors of object stores are OSErrors."""

    def location(self, step: int) -> str:
        """The folder or URL of a step, for people and for `Checkpoint.at`."""

    def steps(self) -> list[int]:
        """What lies under a committed name, whether whole or not, in order."""

    def open(self, step: int, name: str) -> AbstractContextManager[Reader]:
        """A file of a step. Raises FileNotFoundError."""

    def prepare(self, step: int) -> None:
        """Make room for writing a step. One process calls it, before any writes."""

    def file_name(self, stem: str, attempt: str) -> str:
        """The name under which a file of this attempt to save the step has to be written."""

    def write(self, step: int, name: str, data: memoryview) -> None:
        """Write a file of a step that is not committed yet; durable when this returns. Several processes may."""

    def commit(self, step: int, manifest: bytes) -> None:
        """Make the step visible in place of what has its name, with this manifest. One process calls it, after all
        have written."""

    def abandon(self, step: int) -> None:
        """Clear away what was written of a step that will not be committed. Raises nothing."""

    def remove(self, step: int) -> None:
        """Remove a committed step; at no instant it looks whole and is not."""


def blocks(data: memoryview, size: int) -> Iterator[memoryview]:
    """The data in blocks of at most `size` bytes."""
    for start in range(0, len(data), size):
        yield data[start : start + size]

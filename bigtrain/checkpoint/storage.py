"""The interface of storages for checkpoints: a folder or an object store.

A step becomes visible only by `commit`, at once and whole. Files that were written before a commit do not count.
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
            OSError: the bytes cannot be read, or the file is shorter.
        """


class Storage(Protocol):
    """A storage for checkpoints. Its methods raise OSError; those of object stores also raise BigtrainError."""

    def location(self, step: int) -> str:
        """The folder or URL of a step, for people and for `Checkpoint.at`."""

    def check_writable(self) -> None:
        """Write a small file and remove it. Raises BigtrainError where that cannot be done."""

    def read_record(self, name: str) -> bytes | None:
        """A small file beside the steps; None where there is none."""

    def write_record(self, name: str, content: bytes) -> None:
        """Write a small file beside the steps, whole or not at all. One process calls it."""

    def steps(self) -> list[int]:
        """The steps with a committed name, in order. Some may be damaged."""

    def open(self, step: int, name: str) -> AbstractContextManager[Reader]:
        """A file of a step. Raises FileNotFoundError."""

    def prepare(self, step: int) -> None:
        """Prepare for writing a step. One process calls it, before any process writes."""

    def file_name(self, stem: str, attempt: str) -> str:
        """The name of a file of this attempt to save the step."""

    def write(self, step: int, name: str, data: memoryview) -> None:
        """Write a file of a step that is not committed. It is durable on return. Several processes may write."""

    def commit(self, step: int, manifest: bytes) -> None:
        """Make the step visible with this manifest, in place of an earlier one of the same name. One process calls it,
        after all have written."""

    def abandon(self, step: int) -> None:
        """Remove what was written of a step that will not be committed. Raises nothing."""

    def remove(self, step: int) -> None:
        """Remove a committed step. At no instant does a partly removed step look committed."""


def blocks(data: memoryview, size: int) -> Iterator[memoryview]:
    """The data in blocks of at most `size` bytes."""
    for start in range(0, len(data), size):
        yield data[start : start + size]

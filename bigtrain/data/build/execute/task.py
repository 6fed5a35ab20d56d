"""The side of a worker: it runs a function for an item, and ends where one document takes too long.

A document that kills or hangs its worker is found in two steps. The first attempt records nothing, for that takes time.
A later attempt works on one document at a time, and writes down each one before it starts on it.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, TypeVar

from bigtrain.base import BigtrainError
from bigtrain.data.format.documents import Document
from bigtrain.data.format.work_folder import WorkFolder

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class NotedDocument:
    """A document that a worker was at."""

    file: str
    position: int
    characters: int
    after: bool = False
    """Whether the worker was done with it, and read what follows."""

    def __str__(self) -> str:
        where = f"document {self.position} of {self.file[:1000]!r}"
        return f"what follows {where}" if self.after else f"{where} ({self.characters:,} characters)"


@dataclass(frozen=True)
class Attempt:
    """How a worker runs a task."""

    document_seconds: float | None = None
    """After so many seconds at one document the process ends, by SIGALRM. It needs no help of the interpreter, which
    may hang in a library."""
    notes: WorkFolder | None = None
    """Where each document is written down before the work on it; None: nowhere."""
    name: str = ""
    """The file of the note."""
    poison: frozenset[tuple[str, int]] = frozenset()
    """File and position of documents of the item that are left out."""


_attempt = Attempt()
"""That of the task that this process runs."""


def run_task(function: Callable[[Item], Result], item: Item, attempt: Attempt) -> Result:
    """`function(item)`, run as the attempt says."""
    with _in_force(attempt):
        return function(item)


def run_packed(task: bytes) -> bytes:
    """Run what `packed` made, in a worker process. It returns what `unpacked` takes, and raises nothing."""
    _prepare_process()
    try:
        function, item, attempt = pickle.loads(task)
        return pickle.dumps((True, run_task(function, item, attempt)))
    except Exception as error:
        return pickle.dumps((False, _sendable(error)))


def packed(function: Callable[[Item], Result], item: Item, attempt: Attempt) -> bytes:
    """A task as bytes."""
    return pickle.dumps((function, item, attempt))


def unpacked(outcome: bytes) -> Any:
    """The result of a task. Raises what its function raised."""
    done, value = pickle.loads(outcome)
    if not done:
        raise value
    return value


def note(document: Document, *, after: bool = False) -> None:
    """Record which document this worker is at.

    Args:
        document: the document that is next.
        after: the work on it is done, and what follows is read.
    """
    if _attempt.document_seconds is not None:
        signal.setitimer(signal.ITIMER_REAL, _attempt.document_seconds)
    if _attempt.notes is not None:
        noted = NotedDocument(document.file, document.position, len(document.text), after)
        _attempt.notes.write(_attempt.name, json.dumps(asdict(noted)).encode(), durable=False)


def noted_reading(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents. While one is read, the one before it is recorded."""
    for document in documents:
        yield document
        note(document, after=True)


def is_poison(document: Document) -> bool:
    """Whether the document ended its worker before, and is left out."""
    return (document.file, document.position) in _attempt.poison


def is_careful() -> bool:
    """Whether documents are worked on one at a time, to find the one that ends its worker."""
    return _attempt.notes is not None


@contextmanager
def _in_force(attempt: Attempt) -> Iterator[None]:
    global _attempt
    before, _attempt = _attempt, attempt
    try:
        yield
    finally:
        _attempt = before
        if attempt.document_seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)


@cache
def _prepare_process() -> None:
    gc.set_threshold(200_000)  # syntax trees have no cycles; looking for them takes a third of the time to parse
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism


def _sendable(error: Exception) -> Exception:
    """The error with the lines where it was raised, which do not travel; a plain one where it cannot be pickled."""
    lines = "".join(traceback.format_exception(error))
    if not isinstance(error, BigtrainError):
        error.add_note(f"in a worker:\n{lines}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"an error in a worker:\n{lines}")
    return error

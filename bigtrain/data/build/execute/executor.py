"""Runs a function over items somewhere, returns the results in order, and tries again what was lost.

items --> submit, a bounded number at a time --> results in the order of the items
            |
            lost: its process, its machine or a disk failed     again, elsewhere; after some losses the build stops
            lost at one document, and at the same one again     poison: the build stops, or the document is left out
            the function raised an error                        the build stops: another attempt would raise it, too
"""

from __future__ import annotations

import errno
import json
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from bigtrain.base import BigtrainError
from bigtrain.data.build.execute.task import Attempt, NotedDocument
from bigtrain.data.format.work_folder import WorkFolder

Item = TypeVar("Item")
Result = TypeVar("Result")
Done = TypeVar("Done", covariant=True)

AHEAD_PER_WORKER = 3
NODE_PAUSE = 0.2
"""Seconds after the first loss of a machine. It takes a while until a cluster gives it no more tasks; each pause is
twice as long as the one before, up to LONGEST_PAUSE."""
LONGEST_PAUSE = 10.0
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class FailurePolicy:
    """What happens to tasks that fail by their surroundings, and to documents that end their workers."""

    document_seconds: float | None = None
    """Seconds that a worker may take for one document."""
    skip_poison: bool = False
    """Leave a document out that ends its worker; otherwise the build stops."""
    losses: int = 4
    """Losses of a task, by its process or a disk, after which the build stops."""
    node_losses: int = 20
    """The same for losses of its machine, for which a task is rarely to blame."""


class LostError(Exception):
    """A task ended without a result."""

    def __init__(self, how: str, *, cause: Exception | None = None, with_node: bool = False) -> None:
        super().__init__(how)
        self.how = how
        """What happened, for people."""
        self.cause = cause
        """The error of a disk or server that the function raised."""
        self.with_node = with_node
        """Whether the whole machine was lost."""


class Pending(Protocol[Done]):
    """A task that was submitted."""

    def done(self) -> bool:
        """Whether it has ended."""
        ...

    def result(self) -> Done:
        """Wait for the result. Raises LostError, or what the function raised."""
        ...

    def cancel(self) -> object:
        """Do not start it, or end it; nobody waits for it any more."""
        ...


class BuildExecutor(ABC):
    """Runs tasks somewhere. Use it as a context manager: at the end, nothing of it runs any more.

    Args:
        policy: what happens to tasks that fail.
        folder: where workers write which document they are at; all of them see it. Default: a temporary folder of
            this machine.
    """

    def __init__(self, policy: FailurePolicy | None = None, folder: WorkFolder | None = None) -> None:
        self.policy = policy or FailurePolicy()
        self.failures = 0
        """Tasks that were lost and tried again, so far."""
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="bigtrain-notes-")
        self.notes = (folder or WorkFolder.at(self._temporary.name if self._temporary else "")).below("notes")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(at_once=kind is not None)
        if self._temporary is not None:
            self._temporary.cleanup()

    @property
    @abstractmethod
    def ahead(self) -> int:
        """How many tasks may be submitted whose results are not taken."""

    @abstractmethod
    def submit(self, function: Callable[[Item], Result], item: Item, attempt: Attempt) -> Pending[Result]:
        """Start `function(item)` when a worker is free."""

    def look(self) -> None:  # noqa: B027  # this machine does not go away
        """Raise BigtrainError if what runs the tasks is gone."""

    @abstractmethod
    def close(self, *, at_once: bool) -> None:
        """End all workers; with `at_once`, in the middle of their tasks. What they write is whole or absent."""

    def map_in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`map(function, items)` over the workers, with a bounded number of items ahead of the consumer.

        Args:
            function: pickled for the workers, as its items are. It may run more than once for an item.
            items: taken one by one, in this process.

        Raises:
            BigtrainError: the function raised it, or a task was lost too often, or at one document.
        """
        runs: deque[_TaskRun[Any, Result]] = deque()
        try:
            for item in items:
                runs.append(_TaskRun(self, function, item))
                while runs and (len(runs) >= self.ahead or runs[0].done()):
                    yield self._first(runs)
            while runs:
                yield self._first(runs)
        finally:
            for run in runs:
                run.pending.cancel()

    def _first(self, runs: deque[_TaskRun[Any, Result]]) -> Result:
        """The result of the first run. What was lost at the same time, as on one machine, is started again with it."""
        while runs[0].loss() is not None:
            lost = [(run, loss) for run in runs if run.done() and (loss := run.loss()) is not None]
            if (times := max((run.node_losses for run, loss in lost if loss.with_node), default=None)) is not None:
                self.look()
                time.sleep(min(NODE_PAUSE * 2**times, LONGEST_PAUSE))
            for run, loss in lost:
                self.failures += 1
                run.start_again(loss)
        return runs.popleft().finish()


@dataclass
class _TaskRun(Generic[Item, Result]):
    """A task until it has a result: its attempts, and what is known of its failures."""

    executor: BuildExecutor
    function: Callable[[Item], Result]
    item: Item
    attempt: Attempt = field(init=False)
    pending: Pending[Result] = field(init=False)
    losses: int = 0
    node_losses: int = 0
    suspect: NotedDocument | None = None
    """The document at which it was lost last."""

    def __post_init__(self) -> None:
        self.attempt = Attempt(self.executor.policy.document_seconds)
        self.pending = self.executor.submit(self.function, self.item, self.attempt)

    def done(self) -> bool:
        return self.pending.done()

    def loss(self) -> LostError | None:
        """Wait for the end of the attempt. Returns how it was lost; None if it was not."""
        try:
            self.pending.result()
        except LostError as loss:
            return loss
        except OSError as error:
            return None if error.errno in DISK_FULL else LostError("a disk or a server failed", cause=error)
        except Exception:
            return None
        return None

    def finish(self) -> Result:
        self._forget_note()
        return self.pending.result()

    def start_again(self, loss: LostError) -> None:
        """Submit it again, and carefully if its process died. Raises BigtrainError, or OSError, after the last try."""
        policy = self.executor.policy
        if loss.with_node:
            self.node_losses += 1
        else:
            self.losses += 1
            if loss.cause is None:
                self._look_for_poison(loss)
        if self.losses >= policy.losses or self.node_losses >= policy.node_losses:
            raise loss.cause or _died(loss, max(self.losses, self.node_losses), self.suspect)
        if not loss.with_node and loss.cause is None and not self.attempt.notes:
            self.attempt = replace(self.attempt, notes=self.executor.notes, name=uuid.uuid4().hex)
        self.pending = self.executor.submit(self.function, self.item, self.attempt)

    def _look_for_poison(self, loss: LostError) -> None:
        """Leave out the document at which the task was lost twice in a row, or stop. Raises BigtrainError."""
        at = self._noted()
        if at is None or at != self.suspect:
            self.suspect = at
            return
        if at.after or not self.executor.policy.skip_poison:
            raise _died(loss, self.losses, at)
        self.attempt = replace(self.attempt, poison=self.attempt.poison | {(at.file, at.position)})
        self.losses, self.suspect = 0, None

    def _noted(self) -> NotedDocument | None:
        if self.attempt.notes is None:
            return None
        try:
            return NotedDocument(**json.loads(self.attempt.notes.read(self.attempt.name)))
        except FileNotFoundError:
            return None

    def _forget_note(self) -> None:
        if self.attempt.notes is not None:
            self.attempt.notes.remove(self.attempt.name)


def _died(loss: LostError, times: int, at: NotedDocument | None) -> BigtrainError:
    where = f", at {at}" if at else ""
    return BigtrainError(
        f"a worker process of the build died{where}",
        found=f"{loss.how}; {times:,} attempts",
        wanted="about 100 times the bytes of the longest document as memory, for each worker",
        fix="set data.workers to a smaller number and start again: finished pieces are kept; or remove or cut the "
        "document; or set data.poison_documents: skip, which leaves it out and counts it",
    )

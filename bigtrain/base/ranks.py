"""What the ranks of a job do together: send values to rank 0, get its own, and go on or stop with the same message.

Nothing here gives every rank the values of every other: at ten thousand ranks that is ten thousand times too much. Rank
0 gathers them, decides, and sends the others the little that they need.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from bigtrain.base.disk_errors import disk_error
from bigtrain.base.errors import BigtrainError

T = TypeVar("T")


class Ranks(Protocol):
    """This process and the other ranks. The engine's Topology is one implementation, `ALONE` is another."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    def reduce(self, value: T, merge: Callable[[T, T], T]) -> T | None:
        """All ranks' values as one, on rank 0; None elsewhere. See `RankTree.reduce`."""

    def broadcast(self, value: Any) -> Any:
        """The value that rank 0 gave, on every rank."""

    def scatter(self, values: Sequence[T] | None) -> T:
        """One of the values that rank 0 gave to each rank: the n-th on rank n."""


class _Alone:
    rank = 0
    world_size = 1

    def reduce(self, value: T, merge: Callable[[T, T], T]) -> T | None:
        return value

    def broadcast(self, value: Any) -> Any:
        return value

    def scatter(self, values: Sequence[T] | None) -> T:
        assert values is not None
        return values[0]


ALONE: Ranks = _Alone()
"""A single process, without a process group."""


def gather(ranks: Ranks, value: T) -> list[T] | None:
    """The value of every rank, in rank order, on rank 0; None elsewhere."""
    return ranks.reduce([value], _extended)


def first_of(ranks: Ranks, value: T | None) -> T | None:
    """The value of the lowest rank that has one, on every rank; None where no rank has any."""
    found: T | None = ranks.broadcast(ranks.reduce(value, lambda lower, higher: higher if lower is None else lower))
    return found


def raise_first(ranks: Ranks, error: BigtrainError | None) -> None:
    """Raise the error of the lowest rank that has one, on every rank."""
    first = first_of(ranks, error)
    if first is not None:
        raise first.on_all_ranks()


def on_first_rank(ranks: Ranks, decide: Callable[[], T]) -> T:
    """Call `decide` on rank 0 alone and give every rank its result, or its error.

    Raises:
        BigtrainError: as `decide` raised it, on every rank; for an error of a disk before the first step, its message.
    """
    result, error = ranks.broadcast(_tried(decide) if ranks.rank == 0 else None)
    if error is not None:
        raise error.on_all_ranks()
    return cast(T, result)


def on_every_rank(ranks: Ranks, work: Callable[[], T]) -> T:
    """Call `work`, which must not communicate, on every rank; when it fails on one, it fails on all.

    Raises:
        BigtrainError: the error of the lowest rank that had one, on every rank; for an error of a disk before the first
            step, its message.
    """
    result, error = _tried(work)
    raise_first(ranks, error)
    return cast(T, result)


def collectively(ranks: Ranks, what: str, action: Callable[[], T]) -> T:
    """Run the action on every rank. Returns its result here, or raises the same error on every rank.

    No rank continues after another has failed, and no rank waits for one that has failed.

    Raises:
        BigtrainError: the action failed on a rank. It names the lowest rank of each cause, its host, and how many more
            there are.
    """
    value, error = _attempt(action)
    _raise_together(ranks, what, error, ranks.reduce(_Failures.of(ranks, error), _Failures.merged))
    return cast(T, value)


def collected(ranks: Ranks, what: str, action: Callable[[], T]) -> list[T]:
    """The same, and the results of all ranks in rank order on rank 0; an empty list elsewhere. Raises BigtrainError."""
    value, error = _attempt(action)
    own: tuple[_Failures, list[Any]] = (_Failures.of(ranks, error), [value])
    both = ranks.reduce(own, lambda lower, higher: (lower[0].merged(higher[0]), _extended(lower[1], higher[1])))
    failures, values = both or (None, [])
    _raise_together(ranks, what, error, failures)
    return values


def cause_of(error: Exception) -> str:
    """An error in one line for people."""
    return str(error) if isinstance(error, (OSError, BigtrainError)) else f"{type(error).__name__}: {error}"


_CAUSES_SHOWN = 4


@dataclass
class _Failures:
    """What went wrong on some ranks."""

    ranks: int = 0
    """How many failed."""
    causes: dict[str, list[Any]] = field(default_factory=dict)
    """The causes of the lowest of them: for each, the lowest rank that has it, its host, and how many have it."""

    @classmethod
    def of(cls, ranks: Ranks, error: Exception | None) -> _Failures:
        return cls(1, {cause_of(error): [ranks.rank, socket.gethostname(), 1]}) if error else cls()

    def merged(self, higher: _Failures) -> _Failures:
        self.ranks += higher.ranks
        for cause, (rank, host, count) in higher.causes.items():
            if cause in self.causes:
                self.causes[cause][2] += count
            elif len(self.causes) < _CAUSES_SHOWN:
                self.causes[cause] = [rank, host, count]
        return self

    def __str__(self) -> str:
        lines = [
            f"rank {rank} on {host}{f' and {count - 1:,} more' if count > 1 else ''}: {cause}"
            for cause, (rank, host, count) in self.causes.items()
        ]
        if others := self.ranks - sum(count for _, _, count in self.causes.values()):
            lines.append(f"and {others:,} more ranks, each with a cause of its own")
        return "\n          ".join(lines)


def _attempt(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return action(), None
    except Exception as error:
        return None, error


def _tried(work: Callable[[], T]) -> tuple[T | None, BigtrainError | None]:
    """The result, or the error as one that the user is meant to read, with its cause. Another kind is raised."""
    value, error = _attempt(work)
    if error is None or isinstance(error, BigtrainError):
        return value, error
    message = disk_error(error)
    if message is None:
        raise error
    message.__cause__ = error
    return None, message


def _raise_together(ranks: Ranks, what: str, error: Exception | None, failures: _Failures | None) -> None:
    """Raise what rank 0 has heard on every rank. An error that all have, and that is clear already, stays as it is."""
    failed, same, found = ranks.broadcast(
        (failures.ranks, failures.ranks == ranks.world_size and len(failures.causes) == 1, str(failures))
        if failures is not None
        else None
    )
    if same and isinstance(error, BigtrainError):
        raise error.on_all_ranks()
    if failed:
        raise BigtrainError(what, found=found).on_all_ranks() from error


def _extended(lower: list[Any], higher: list[Any]) -> list[Any]:
    lower += higher
    return lower

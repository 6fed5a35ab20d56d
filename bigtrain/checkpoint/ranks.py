"""The collective operations that saving and loading need: one gather, and actions whose errors all ranks share."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from bigtrain.base import BigtrainError

T = TypeVar("T")


class Ranks(Protocol):
    """This process and the other ranks. The engine's Topology is one implementation, `ALONE` is another."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    def all_gather(self, value: Any) -> list[Any]:
        """The value of every rank, in rank order, on every rank."""


class _Alone:
    rank = 0
    world_size = 1

    def all_gather(self, value: Any) -> list[Any]:
        return [value]


ALONE: Ranks = _Alone()
"""A single process, without a process group."""


def collectively(ranks: Ranks, what: str, action: Callable[[], T]) -> list[T]:
    """Run the action on every rank. Returns the results in rank order, or raises the same error on every rank.

    No rank continues after another has failed, and no rank waits for one that has failed.

    Raises:
        BigtrainError: the action failed on a rank. It names the ranks, their hosts and the causes.
    """
    error: Exception | None = None
    value: T | None = None
    try:
        value = action()
    except Exception as caught:
        error = caught
    cause = cause_of(error) if error else None
    outcomes: list[tuple[str | None, str, Any]] = ranks.all_gather((cause, socket.gethostname(), value))
    causes = {cause for cause, _, _ in outcomes}
    if causes == {None}:
        return [value for _, _, value in outcomes]
    if len(causes) == 1 and isinstance(error, BigtrainError):
        raise error.on_all_ranks()  # the same on all ranks, and clear already
    failed = [f"rank {rank} on {host}: {cause}" for rank, (cause, host, _) in enumerate(outcomes) if cause]
    raise BigtrainError(what, found="\n          ".join(failed)).on_all_ranks() from error


def cause_of(error: Exception) -> str:
    """An error in one line for people."""
    return str(error) if isinstance(error, (OSError, BigtrainError)) else f"{type(error).__name__}: {error}"

"""What saving and loading need of the other ranks: one collective, and agreement built on it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from bigtrain.base.errors import BigtrainError

T = TypeVar("T")


class Ranks(Protocol):
    """This process among its peers. The engine's Topology is one; so is `ALONE`."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    @property
    def world_size(self) -> int:
        """How many processes there are."""

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
    """Run the action on every rank; its results in rank order, or the same error on every rank.

    No rank goes on while another has failed, and none waits for one that will not come.

    Raises:
        BigtrainError: the action failed on some rank; names the ranks, their hosts and the causes.
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
        raise error.on_all_ranks()  # the same everywhere, and clear as it is
    failed = [f"rank {rank} on {host}: {cause}" for rank, (cause, host, _) in enumerate(outcomes) if cause]
    raise BigtrainError(what, found="\n          ".join(failed)).on_all_ranks() from error


def cause_of(error: Exception) -> str:
    """An error in one line for people."""
    return str(error) if isinstance(error, (OSError, BigtrainError)) else f"{type(error).__name__}: {error}"

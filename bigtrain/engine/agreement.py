"""What the ranks of a run decide together, so that all go on or all stop with the same message."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from bigtrain.base import BigtrainError, disk_error
from bigtrain.engine.topology import Topology

Result = TypeVar("Result")


def on_first_rank(topology: Topology, decide: Callable[[], Result]) -> Result:
    """Call `decide` on rank 0 alone and give every rank its result, or its error.

    Raises:
        BigtrainError: as `decide` raised it, on every rank; for an error of a disk before the first step, its message.
    """
    result: Result | None = None
    error: BigtrainError | None = None
    if topology.rank == 0:
        try:
            result = decide()
        except Exception as caught:
            error = _of_user(caught)
    result, error = topology.broadcast((result, error))
    if error is not None:
        raise error.on_all_ranks()
    return cast(Result, result)


def on_every_rank(topology: Topology, work: Callable[[], Result]) -> Result:
    """Call `work`, which must not communicate, on every rank; when it fails on one, it fails on all.

    Raises:
        BigtrainError: the error of the lowest rank that had one, on every rank; for an error of a disk before the first
            step, its message.
    """
    result: Result | None = None
    error: BigtrainError | None = None
    try:
        result = work()
    except Exception as caught:
        error = _of_user(caught)
    raise_first(topology, error)
    return cast(Result, result)


def _of_user(error: Exception) -> BigtrainError:
    """The error as one that the user is meant to read, with its cause; another kind is raised again."""
    if isinstance(error, BigtrainError):
        return error
    message = disk_error(error)
    if message is None:
        raise error
    message.__cause__ = error
    return message


def raise_first(topology: Topology, error: BigtrainError | None) -> None:
    """Raise the error of the lowest rank that has one, on every rank."""
    for theirs in topology.all_gather(error):
        if theirs is not None:
            raise theirs.on_all_ranks()

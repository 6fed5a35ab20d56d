"""Removes superseded checkpoints: those of steps that a rewind took back, so that no start goes on from them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from bigtrain.base import BigtrainError, Ranks, collected
from bigtrain.checkpoint import Checkpoint, StorageTiers, list_checkpoints
from bigtrain.rundir import Decision, is_superseded


def remove_superseded(tiers: StorageTiers, decisions: Sequence[Decision], ranks: Ranks) -> list[Checkpoint]:
    """Remove the checkpoints that decisions superseded, on every node. Every rank calls it.

    They cannot stay: the run comes to their steps again and saves other checkpoints under the same names, and a node
    that was away in the meantime may still hold one. Unreadable ones are left to the search for damaged checkpoints.

    Returns:
        The checkpoints that were removed, on rank 0.

    Raises:
        BigtrainError: one cannot be removed.
    """
    if not decisions:
        return []

    def remove() -> list[Checkpoint]:
        storages = [tiers.durable] if ranks.rank == 0 else []
        if tiers.local is not None:
            storages.append(tiers.local)
        superseded = [c for storage in storages for c in list_checkpoints(storage) if _is_superseded(c, decisions)]
        for checkpoint in superseded:
            with suppress(FileNotFoundError):  # another rank of this node has removed it
                checkpoint.storage.remove(checkpoint.step)
        return superseded

    return [
        checkpoint
        for of_rank in collected(ranks, "superseded checkpoints cannot be removed", remove)
        for checkpoint in of_rank
    ]


def _is_superseded(checkpoint: Checkpoint, decisions: Sequence[Decision]) -> bool:
    try:
        return is_superseded(checkpoint, decisions)
    except BigtrainError:
        return False

"""Taking away the checkpoints of a course of the run that was given up, so that nothing goes on from them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from bigtrain.base.errors import BigtrainError
from bigtrain.checkpoint import Checkpoint, StorageTiers, list_checkpoints
from bigtrain.checkpoint.ranks import Ranks, collectively
from bigtrain.rundir.decisions import Decision, is_superseded


def remove_superseded(tiers: StorageTiers, decisions: Sequence[Decision], ranks: Ranks) -> list[Checkpoint]:
    """Remove what the decisions made void, on every node; what was removed. Every rank calls it.

    They cannot stay: the run comes to their steps again and saves other checkpoints under their names, and a node that
    was away meanwhile may hold one still. What cannot be read is left to those who look for damaged ones.

    Raises:
        BigtrainError: one cannot be removed.
    """
    if not decisions:
        return []

    def remove() -> list[Checkpoint]:
        storages = [tiers.durable] if ranks.rank == 0 else []
        if tiers.local is not None:
            storages.append(tiers.local)
        void = [c for storage in storages for c in list_checkpoints(storage) if _is_superseded(c, decisions)]
        for checkpoint in void:
            with suppress(FileNotFoundError):  # another rank of this node was faster
                checkpoint.storage.remove(checkpoint.step)
        return void

    return [
        checkpoint
        for of_rank in collectively(ranks, "void checkpoints cannot be removed", remove)
        for checkpoint in of_rank
    ]


def _is_superseded(checkpoint: Checkpoint, decisions: Sequence[Decision]) -> bool:
    try:
        return is_superseded(checkpoint, decisions)
    except BigtrainError:
        return False

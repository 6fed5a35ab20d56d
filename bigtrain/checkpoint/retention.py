"""Which checkpoints may go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bigtrain.checkpoint.checkpoint import Checkpoint, verify
from bigtrain.checkpoint.ranks import ALONE, Ranks, collectively
from bigtrain.checkpoint.storage import Storage


def prune(
    storage: Storage, keep: int, keep_every_steps: int | None = None, *, dry_run: bool = False, ranks: Ranks = ALONE
) -> list[Checkpoint]:
    """Remove all but the `keep` newest good checkpoints, and say which. Every rank calls it.

    Nothing goes unless the newest good one was read through and found right; the others kept need their manifest and
    sizes to be right. Bad ones newer than those kept stay for whoever wants to look into them.

    Args:
        keep_every_steps: those whose step this divides are kept for ever.
        dry_run: only say which would go.

    Raises:
        BigtrainError: one cannot be removed.
    """
    what = f"old checkpoints in {storage} cannot be removed"
    (steps, *_) = collectively(ranks, what, lambda: storage.steps() if ranks.rank == 0 else [])
    if len(steps) <= keep:
        return []
    there = [Checkpoint(step, storage) for step in steps]
    kept = [checkpoint for checkpoint, _ in zip(_good(there, ranks), range(keep), strict=False)]
    if len(kept) < keep:
        return []
    expired = [
        checkpoint
        for checkpoint in there
        if checkpoint.step < kept[-1].step and not (keep_every_steps and checkpoint.step % keep_every_steps == 0)
    ]

    def remove() -> None:
        if ranks.rank == 0 and not dry_run:
            for checkpoint in expired:
                storage.remove(checkpoint.step)

    collectively(ranks, what, remove)
    return expired


def _good(checkpoints: Sequence[Checkpoint], ranks: Ranks) -> Iterator[Checkpoint]:
    """Newest first; the first is verified to the last byte, the rest by manifest and sizes."""
    contents = True
    for checkpoint in reversed(checkpoints):
        if not verify(checkpoint, contents=contents, ranks=ranks):
            contents = False
            yield checkpoint

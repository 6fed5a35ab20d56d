"""Which checkpoints are removed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from bigtrain.base import ALONE, Ranks, collectively
from bigtrain.checkpoint.checkpoint import Checkpoint, steps_for_all, verify
from bigtrain.checkpoint.storage import Storage


def prune(
    storage: Storage,
    keep: int,
    keep_every_steps: int | None = None,
    *,
    keep_steps: Collection[int] = (),
    dry_run: bool = False,
    ranks: Ranks = ALONE,
) -> list[Checkpoint]:
    """Remove all but the `keep` newest good checkpoints. Every rank calls it.

    Nothing is removed unless the newest good checkpoint was read and verified in full. The others that are kept must
    have a valid manifest and files of the right size. Damaged checkpoints newer than the kept ones stay for inspection.

    Args:
        storage: where the checkpoints are.
        keep: number of checkpoints to keep.
        keep_every_steps: checkpoints whose step is a multiple of this are kept for ever.
        keep_steps: these checkpoints are kept, too.
        dry_run: remove nothing.
        ranks: these share the reading.

    Returns:
        The checkpoints that were removed, or would be.

    Raises:
        BigtrainError: a checkpoint cannot be removed.
    """
    what = f"old checkpoints in {storage} cannot be removed"
    steps = steps_for_all(storage, ranks, what)
    if len(steps) <= keep:
        return []
    there = [Checkpoint(step, storage) for step in steps]
    kept = [checkpoint for checkpoint, _ in zip(_good(there, ranks), range(keep), strict=False)]
    if len(kept) < keep:
        return []
    expired = [
        checkpoint
        for checkpoint in there
        if checkpoint.step < kept[-1].step
        and checkpoint.step not in keep_steps
        and not (keep_every_steps and checkpoint.step % keep_every_steps == 0)
    ]

    def remove() -> None:
        if ranks.rank == 0 and not dry_run:
            for checkpoint in expired:
                storage.remove(checkpoint.step)

    collectively(ranks, what, remove)
    return expired


def _good(checkpoints: Sequence[Checkpoint], ranks: Ranks) -> Iterator[Checkpoint]:
    """The good checkpoints, newest first. The first is verified in full, the others by manifest and sizes."""
    contents = True
    for checkpoint in reversed(checkpoints):
        if not verify(checkpoint, contents=contents, ranks=ranks):
            contents = False
            yield checkpoint

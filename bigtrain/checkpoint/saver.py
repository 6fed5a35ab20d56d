"""Saving behind the training: the training thread pays a copy, a thread of its own does the rest.

    training thread      wait for the last save | copy the fragments into the image | train on
    behind                                      hash | write, fsync | agree | manifest, rename | prune

The ranks agree over a process group of their own, so that their messages never meet those of the training. One save is
under way at a time: the next one waits for it, so there is one image and no order to get wrong. A failure behind is the
same error on every rank, kept until the end: `failed` tells of it at every step, `save` and `wait` raise it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bigtrain.base.errors import BigtrainError
from bigtrain.base.faults import reached
from bigtrain.checkpoint.checkpoint import Checkpoint
from bigtrain.checkpoint.commit import About, Contents, commit
from bigtrain.checkpoint.fragment import Fragment
from bigtrain.checkpoint.manifest import Cursor
from bigtrain.checkpoint.ranks import Ranks, cause_of, collectively
from bigtrain.checkpoint.retention import prune
from bigtrain.checkpoint.storage import Storage
from bigtrain.checkpoint.storage_tiers import StorageTiers, leads_here
from bigtrain.checkpoint.tensor_file import Image
from bigtrain.config.settings import CheckpointSettings

_LOCAL_COPIES = 2


@dataclass(frozen=True)
class Commit:
    """A checkpoint that has become durable."""

    checkpoint: Checkpoint
    local: bool
    """Whether it is the copy on the nodes' own disks."""
    stall_seconds: float
    """What the training has lost by it."""
    seconds: float
    """From the begin of the save to here."""
    removed: list[Checkpoint] = field(default_factory=list)
    """Older ones that went."""
    prune_problem: str | None = None
    """Why they could not go. What is committed is safe; only the room was not given back."""


class Saver:
    """Saves the checkpoints of a run, one after the other. Every rank has one and makes the same calls."""

    def __init__(
        self,
        tiers: StorageTiers,
        ranks: Ranks,
        settings: CheckpointSettings | None = None,
        *,
        layout: str = "",
        durable_step: int | None = None,
    ) -> None:
        """Join the other ranks.

        Args:
            ranks: over a process group that nobody else uses while a save is under way.
            settings: asynchronous, keep, keep_every_steps and durable_every.
            layout: what decides which rank owns what; see the manifest.
            durable_step: the step that the state now has, if there is a durable checkpoint of it.

        Raises:
            BigtrainError: the local tier cannot be written.
        """
        self._places, self._ranks, self._layout = tiers, ranks, layout
        self._settings = settings or CheckpointSettings()
        self._leads = ranks.rank == 0
        self._leads_node = tiers.local is not None and leads_here(tiers.local, ranks)
        self._image = Image()
        self._until_durable = 0
        self._local_step: int | None = None
        self.durable_step = durable_step
        self._commits: deque[Commit] = deque()
        self._thread: threading.Thread | None = None
        self.saving_since: float | None = None
        """When the work behind the training began that is under way, by time.monotonic."""
        self._error: BigtrainError | None = None

    @property
    def failed(self) -> bool:
        """Whether a save has gone wrong."""
        return self._error is not None

    def finished(self) -> list[Commit]:
        """What has become durable since this was asked last."""
        return [self._commits.popleft() for _ in range(len(self._commits))]

    def wait(self) -> None:
        """Wait until the save under way is durable.

        Raises:
            BigtrainError: it, or one before it, has failed; the same on every rank.
        """
        self.close()
        if self._error is not None:
            raise self._error

    def went_back(self, durable_step: int | None) -> None:
        """The state is that of an earlier step again: whatever was saved of later ones counts no more.

        Args:
            durable_step: that step, if there is a durable checkpoint of it.
        """
        self.close()
        self.durable_step, self._local_step, self._until_durable = durable_step, None, 0

    def close(self) -> None:
        """Wait until no save is under way, whatever has become of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def reserve(self, fragments: Sequence[Fragment], rng: Mapping[str, torch.Tensor]) -> None:
        """Have the memory for the copy ready before the first save, behind the training."""
        own = _own(fragments)
        self._in_background(lambda: self._image.reserve(own, rng))

    def save(
        self,
        cursor: Cursor,
        fragments: Sequence[Fragment],
        rng: Mapping[str, torch.Tensor],
        *,
        mathematics: Mapping[str, Any],
        zero_stage: int,
        state: Mapping[str, Any],
        last: bool = False,
        before: Callable[[], None] = lambda: None,
    ) -> float:
        """Take a copy of the state and see to it that it becomes a checkpoint of this step.

        A checkpoint of the same step that is already there (a bad one, which was fallen back from) is replaced.

        Args:
            fragments: this rank's part of the state; may change as soon as this returns.
            last: of this start: goes to the durable place whatever `durable_every` says.
            before: makes durable what has to be so before the checkpoint is; called behind.

        Returns:
            Seconds that the training has lost.

        Raises:
            BigtrainError: on every rank, when the save before has failed on any; not asynchronous: when this one has.
                Earlier checkpoints are untouched.
        """
        started = time.perf_counter()
        self.wait()
        reached("save.begun")
        self._image.fill(_own(fragments), rng)
        reached("save.copied")
        stall = time.perf_counter() - started
        about, contents = About(cursor, mathematics, zero_stage, state, self._layout), Contents.of(fragments)
        storages = self._storages(cursor.step, last)

        def work() -> None:
            collectively(self._ranks, f"the checkpoint of step {cursor.step} could not be written", before)
            data, checksum = self._image.data, self._image.checksum()
            for storage, leads in storages:
                done = commit(storage, about, contents, data, checksum, leads=leads, ranks=self._ranks)
                seconds, local = time.perf_counter() - started, storage is self._places.local
                removed, problem = self._cleared(storage, cursor.step)
                self._commits.append(Commit(done, local, stall, seconds, removed, problem))

        self._in_background(work)
        if not self._settings.asynchronous:
            self.wait()
        return time.perf_counter() - started

    def _storages(self, step: int, last: bool) -> list[tuple[Storage, bool]]:
        """Where a save goes, and whether this rank leads there."""
        chosen: list[tuple[Storage, bool]] = []
        if self._places.local is not None and self._local_step != step:  # else only the durable copy is lacking
            self._local_step = step
            chosen.append((self._places.local, self._leads_node))
        if self._places.local is None or last or self._until_durable == 0:
            self.durable_step, self._until_durable = step, self._settings.durable_every
            chosen.append((self._places.durable, self._ranks.rank == 0))
        self._until_durable -= 1
        return chosen

    def _in_background(self, work: Callable[[], None]) -> None:
        self.close()
        self.saving_since = time.monotonic()
        self._thread = threading.Thread(target=self._remember_failure, args=(work,), name="saver", daemon=True)
        self._thread.start()

    def _remember_failure(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BigtrainError as error:
            self._error = error
        except Exception as error:  # the other ranks did not answer, or there is no memory
            self._error = BigtrainError("a checkpoint could not be saved", found=cause_of(error))
        finally:
            self.saving_since = None

    def _cleared(self, storage: Storage, step: int) -> tuple[list[Checkpoint], str | None]:
        """Remove what is not to be kept beside this step; what went, and why it could not."""
        try:
            if storage is self._places.local:
                return self._clear_local(storage, step), None
            if self._settings.keep is not None:
                return prune(storage, self._settings.keep, self._settings.keep_every_steps, ranks=self._ranks), None
        except (OSError, BigtrainError) as error:
            return [], str(error)
        return [], None

    def _clear_local(self, storage: Storage, step: int) -> list[Checkpoint]:
        """Keep this step and the one before it. What is newer was fallen back from."""
        kept = [there for there in storage.steps() if there <= step][-_LOCAL_COPIES:]
        expired = [there for there in storage.steps() if there not in kept] if self._leads_node else []
        for there in expired:
            storage.remove(there)
        return [Checkpoint(there, storage) for there in expired]


def _own(fragments: Sequence[Fragment]) -> list[Fragment]:
    """What this rank saves."""
    return [share for share in (fragment.share() for fragment in fragments) if share.data.numel()]


def save(
    tiers: StorageTiers,
    cursor: Cursor,
    fragments: Sequence[Fragment],
    rng: Mapping[str, torch.Tensor],
    *,
    mathematics: Mapping[str, Any],
    zero_stage: int,
    state: Mapping[str, Any],
    ranks: Ranks,
) -> Checkpoint:
    """Save one checkpoint and wait for it. Every rank calls it with its own fragments and random state.

    Raises:
        BigtrainError: on every rank, when any rank could not write. Earlier checkpoints are untouched.
    """
    saver = Saver(tiers, ranks, CheckpointSettings(asynchronous=False))
    saver.save(cursor, fragments, rng, mathematics=mathematics, zero_stage=zero_stage, state=state)
    return saver.finished()[-1].checkpoint

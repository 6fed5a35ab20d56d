"""Asynchronous saving: the training thread copies the state, and a background thread does the rest.

    training thread      wait for the last save | copy the fragments into the image | continue training
    background thread                           hash | write, fsync | agree | manifest, rename | prune

The ranks agree over a process group of their own, so that their messages never mix with those of the training. One save
is in progress at a time, and the next one waits for it, so there is one image. A failure in the background is the same
error on every rank, and stays: `failed` shows it at every step, and `save` and `wait` raise it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bigtrain.base import BigtrainError, Ranks, cause_of, collectively, reached
from bigtrain.checkpoint.checkpoint import Checkpoint
from bigtrain.checkpoint.commit import About, commit
from bigtrain.checkpoint.contents import Contents
from bigtrain.checkpoint.fragment import Fragment
from bigtrain.checkpoint.manifest import Cursor
from bigtrain.checkpoint.retention import prune
from bigtrain.checkpoint.storage import Storage
from bigtrain.checkpoint.storage_tiers import StorageTiers, leads_here
from bigtrain.checkpoint.tensor_file import Image
from bigtrain.config import CheckpointSettings

_LOCAL_COPIES = 2


@dataclass(frozen=True)
class Commit:
    """A committed checkpoint."""

    checkpoint: Checkpoint
    local: bool
    """Whether it is the copy in the local tier, on the disks of the nodes."""
    stall_seconds: float
    """Seconds for which the training waited."""
    seconds: float
    """Seconds from the start of the save to the commit."""
    removed: list[Checkpoint] = field(default_factory=list)
    """Older checkpoints that were removed after it."""
    prune_problem: str | None = None
    """Why older ones could not be removed. The committed checkpoint is safe; only disk space is not freed."""


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
            ranks: over a process group that nothing else uses during a save.
            settings: asynchronous, keep, keep_every_steps and durable_every.
            layout: identifies which rank owns which state; see the manifest.
            durable_step: the current step, if there is a durable checkpoint of it.

        Raises:
            BigtrainError: the local tier cannot be written.
        """
        self._tiers, self._ranks, self._layout = tiers, ranks, layout
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
        """Start of the background work in progress, by time.monotonic; None without any."""
        self._error: BigtrainError | None = None

    @property
    def failed(self) -> bool:
        """Whether a save has failed."""
        return self._error is not None

    def finished(self) -> list[Commit]:
        """The checkpoints that were committed since the last call."""
        return [self._commits.popleft() for _ in range(len(self._commits))]

    def wait(self) -> None:
        """Wait until the save in progress is committed.

        Raises:
            BigtrainError: this save or an earlier one has failed. The error is the same on every rank.
        """
        self.close()
        if self._error is not None:
            raise self._error

    def went_back(self, durable_step: int | None) -> None:
        """Record that the state is that of an earlier step again. Checkpoints of later steps are superseded.

        Args:
            durable_step: that step, if there is a durable checkpoint of it.
        """
        self.close()
        self.durable_step, self._local_step, self._until_durable = durable_step, None, 0

    def close(self) -> None:
        """Wait until no save is in progress, whether it succeeded or not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def reserve(self, fragments: Sequence[Fragment], rng: Mapping[str, torch.Tensor]) -> None:
        """Allocate the memory for the copy before the first save, in the background."""
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
        keep_steps: Collection[int] = (),
        before: Callable[[], None] = lambda: None,
    ) -> float:
        """Copy the state, and make it a checkpoint of this step in the background.

        An existing checkpoint of the same step, which is a damaged one, is replaced.

        Args:
            fragments: this rank's part of the state; may change as soon as this returns.
            last: it goes to the durable tier regardless of `durable_every`, as the last save of a start does.
            keep_steps: the checkpoints of these steps are not removed.
            before: makes other files durable that must be so before the checkpoint is. It runs in the background.

        Returns:
            Seconds for which the training waited.

        Raises:
            BigtrainError: on every rank, when the previous save has failed on a rank. If saves are not asynchronous,
                also when this one has. Earlier checkpoints are untouched.
        """
        started = time.perf_counter()
        self.wait()
        reached("save.begun")
        self._image.fill(_own(fragments), rng)
        reached("save.copied")
        stall = time.perf_counter() - started
        about = About(cursor, mathematics, zero_stage, state, self._layout)
        contents = Contents.of(fragments, self._ranks.rank)
        storages = self._storages(cursor.step, last)

        def work() -> None:
            collectively(self._ranks, f"the checkpoint of step {cursor.step} could not be written", before)
            data, checksum = self._image.data, self._image.checksum()
            for storage, leads in storages:
                local = storage is self._tiers.local
                done = commit(storage, about, contents, data, checksum, leads=leads, of_nodes=local, ranks=self._ranks)
                seconds = time.perf_counter() - started
                removed, problem = self._cleared(storage, cursor.step, keep_steps)
                self._commits.append(Commit(done, local, stall, seconds, removed, problem))

        self._in_background(work)
        if not self._settings.asynchronous:
            self.wait()
        return time.perf_counter() - started

    def _storages(self, step: int, last: bool) -> list[tuple[Storage, bool]]:
        """The storages of a save, and whether this rank leads in each."""
        chosen: list[tuple[Storage, bool]] = []
        if self._tiers.local is not None and self._local_step != step:  # else only the durable copy is missing
            self._local_step = step
            chosen.append((self._tiers.local, self._leads_node))
        if self._tiers.local is None or last or self._until_durable == 0:
            self.durable_step, self._until_durable = step, self._settings.durable_every
            chosen.append((self._tiers.durable, self._ranks.rank == 0))
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

    def _cleared(self, storage: Storage, step: int, keep_steps: Collection[int]) -> tuple[list[Checkpoint], str | None]:
        """Remove older checkpoints. Returns those removed, and the problem if they could not be."""
        try:
            if storage is self._tiers.local:
                return self._clear_local(storage, step), None
            if self._settings.keep is not None:
                keep, every = self._settings.keep, self._settings.keep_every_steps
                return prune(storage, keep, every, keep_steps=keep_steps, ranks=self._ranks), None
        except (OSError, BigtrainError) as error:
            return [], str(error)
        return [], None

    def _clear_local(self, storage: Storage, step: int) -> list[Checkpoint]:
        """Keep this step and the one before it. Newer ones were damaged or superseded."""
        kept = [there for there in storage.steps() if there <= step][-_LOCAL_COPIES:]
        expired = [there for there in storage.steps() if there not in kept] if self._leads_node else []
        for there in expired:
            storage.remove(there)
        return [Checkpoint(there, storage) for there in expired]


def _own(fragments: Sequence[Fragment]) -> list[Fragment]:
    """The non-empty parts that this rank saves."""
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

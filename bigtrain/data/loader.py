"""The loader: each rank assembles its own slice of every global batch, ahead of time, in a background thread."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bigtrain.config.batch_schedule import BatchSchedule
from bigtrain.config.errors import BigtrainError
from bigtrain.data.assemble import assemble
from bigtrain.data.batch import RankBatch, digest_rows, micro_batches_of, wrap_int64
from bigtrain.data.packing import Packing, fetch
from bigtrain.data.plan import Plan, SampleAddresses
from bigtrain.data.unlabelled import Unlabelled, find_unlabelled

ROWS_AT_ONCE = 64
"""Rows that are assembled together, at least, once the loader has run for a while: numpy likes large arrays."""
ROWS_AHEAD = 1024
"""Rows that are planned at a time."""
POLL_SECONDS = 1.0

I64 = npt.NDArray[np.int64]


class PlannedShare(NamedTuple):
    """One rank's share of a step."""

    samples: I64
    """[n]"""
    addresses: SampleAddresses
    """Of these samples."""


class Loader:
    """An iterator over the `RankBatch`es of one rank, from a step on.

    Of a global batch, samples [g, g + global_batch_size), rank r reads the r-th of world_size equal, contiguous slices.
    What a global batch holds depends on the plan and g alone. The state to resume from is {consumed_samples, plan_id}:
    pass consumed_samples as first_sample. Use it as a context manager, or call `close`.

    Args:
        plan: the order of the samples, and how many each step takes.
        packings: the training datasets that the plan was made from, in its order.
        first_sample: number of the first global batch's first sample.
        micro_batch_size: samples in one forward pass.
        rank: this process.
        world_size: all processes.
        prefetch: groups of batches held ready; in a group are ROWS_AT_ONCE rows, or one batch where that has more.

    Raises:
        BigtrainError: a global batch size does not divide into micro-batches on all ranks.
    """

    def __init__(
        self,
        plan: Plan,
        packings: Sequence[Packing],
        *,
        first_sample: int = 0,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
    ) -> None:
        _require_divisible(plan.batches, micro_batch_size, world_size)
        if [(p.dataset.dataset_id, p.pack_id) for p in packings] != [(s.dataset_id, s.pack_id) for s in plan.sources]:
            raise ValueError("these are not the datasets that the plan was made from")
        self._plan, self._packings = plan, list(packings)
        self._first_step = plan.batches.step_of(first_sample)
        if plan.batches.samples_of(self._first_step).start != first_sample:
            raise ValueError(f"no step begins with sample {first_sample}")
        self._micro_batch_size = micro_batch_size
        self._rank, self._world_size = rank, world_size
        self._ready: deque[RankBatch] = deque()
        self._queue: queue.Queue[list[RankBatch] | BaseException] = queue.Queue(prefetch)
        self._failure: BaseException | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="bigtrain-loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[RankBatch]:
        return self

    def __next__(self) -> RankBatch:
        """The next batch. What went wrong in the background is raised here, and again at every later call."""
        if self._ready:
            return self._ready.popleft()
        while self._failure is None and not self._closed.is_set():
            try:
                item = self._queue.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if not self._thread.is_alive() and self._queue.empty():
                    self._failure = RuntimeError("the loader's thread died without a word")
                continue
            if isinstance(item, list):
                self._ready.extend(item)
                return self._ready.popleft()
            self._failure = item
        if self._failure is not None:
            raise self._failure
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and drop what it had prepared."""
        self._closed.set()
        self._ready.clear()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.01)  # it may be waiting for room
            except queue.Empty:
                continue

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _produce(self) -> None:
        try:
            unlabelled = find_unlabelled(self._plan, self._packings)
            for group in self._groups():
                self._queue.put(self._assembled(group, unlabelled))
                if self._closed.is_set():
                    return
        except BaseException as error:
            self._queue.put(error)

    def _groups(self) -> Iterator[list[PlannedShare]]:
        """The shares of all steps, in groups: the first alone, so that it comes at once, then more and more rows."""
        rows_at_once = 1
        group: list[PlannedShare] = []
        for share in self._planned():
            group.append(share)
            if sum(len(share.samples) for share in group) >= rows_at_once:
                yield group
                group, rows_at_once = [], min(2 * rows_at_once, ROWS_AT_ONCE)

    def _planned(self) -> Iterator[PlannedShare]:
        """This rank's share of every step, planned some steps ahead."""
        batches, step = self._plan.batches, self._first_step
        while True:
            shares: list[I64] = []
            while sum(map(len, shares)) < ROWS_AHEAD:
                samples = batches.samples_of(step + len(shares))
                share = len(samples) // self._world_size
                shares.append(np.arange(samples.start, samples.stop)[self._rank * share : (self._rank + 1) * share])
            addresses = self._plan.locate_many(np.concatenate(shares))
            first = 0
            for own in shares:
                last = first + len(own)
                yield PlannedShare(own, SampleAddresses(*(field[first:last] for field in addresses)))
                first = last
            step += len(shares)

    def _assembled(self, group: list[PlannedShare], unlabelled: list[Unlabelled]) -> list[RankBatch]:
        """The batches of a group of steps."""
        samples = np.concatenate([share.samples for share in group])
        addresses = SampleAddresses(*map(np.concatenate, zip(*(share.addresses for share in group), strict=True)))
        fetch(self._packings, addresses.source, addresses.sequence)
        rows = assemble(self._packings, addresses.source, addresses.sequence)
        for skip in unlabelled:
            skip.apply(rows, samples, addresses)
        micro_batches = micro_batches_of(rows, self._micro_batch_size)
        batches, first = [], 0
        for share in group:
            last = first + len(share.samples)
            own = micro_batches[first // self._micro_batch_size : last // self._micro_batch_size]
            position = self._rank * len(share.samples)  # of this rank's first row in the global batch
            batches.append(
                RankBatch(
                    first_sample=int(share.samples[0]) - position,
                    micro_batches=own,
                    label_tokens=sum(batch.label_tokens for batch in own),
                    input_tokens=sum(batch.input_tokens for batch in own),
                    digest=wrap_int64(digest_rows(rows.input_ids[first:last], position)),
                )
            )
            first = last
        return batches


def _require_divisible(batches: BatchSchedule, micro_batch_size: int, world_size: int) -> None:
    unit = micro_batch_size * world_size
    for stage, size in enumerate(batches.sizes):
        if size % unit:
            last = stage == len(batches.sizes) - 1
            key = "train.global_batch_size" if last else f"train.batch_size_warmup.{stage}.global_batch_size"
            below = size // unit * unit
            nearest = f"{below} or {below + unit}" if below else str(unit)
            raise BigtrainError(
                f"{key} does not divide into micro-batches on all processes",
                found=f"global_batch_size {size}, micro_batch_size {micro_batch_size}, {world_size} processes",
                wanted=f"a multiple of {micro_batch_size} x {world_size} = {unit}",
                fix=f"set {key} to {nearest}, or change micro_batch_size or the number of processes",
            )

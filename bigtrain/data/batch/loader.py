"""The loader: each rank assembles its own slice of every global batch, ahead of time, in a background thread."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bigtrain.base import reached
from bigtrain.config import divide_work
from bigtrain.data.batch.assemble import assemble
from bigtrain.data.batch.batch import RankBatch, digest_inputs, digest_rows, micro_batches_of, wrap_int64
from bigtrain.data.batch.kept import KeptOutputs
from bigtrain.data.batch.packing import Packing, fetch
from bigtrain.data.batch.unlabelled import find_unlabelled
from bigtrain.data.order.plan import Plan, SampleAddresses
from bigtrain.objective import AddressKeys, Causal, Objective, PreparedRows

TOKENS_AT_ONCE, ROWS_AT_ONCE = 1 << 18, 128
"""Limits on what is assembled at once after the first batches: numpy is faster on large arrays. A larger batch is
assembled whole."""
ROWS_AHEAD = 1024
"""Rows that are planned at a time."""
POLL_SECONDS = 1.0

I64 = npt.NDArray[np.int64]


class PlannedGroup(NamedTuple):
    """One rank's shares of consecutive steps."""

    sizes: list[int]
    """Samples of each share."""
    samples: I64
    """[n], the samples of all shares."""
    addresses: SampleAddresses
    """The addresses of these samples."""
    micro_batch_size: int
    """Samples in one forward pass."""


class Loader:
    """An iterator over the `RankBatch`es of one rank, from a step on.

    Rank r reads the r-th of world_size equal, contiguous slices of a global batch, samples [g, g + global_batch_size).
    The contents of a global batch depend only on the plan and g. The state to resume from is {consumed_samples,
    plan_id}: pass consumed_samples as first_sample. Use it as a context manager, or call `close`.

    Args:
        plan: the order of the samples, and how many each step takes.
        packings: the training datasets that the plan was made from, in the order of its sources.
        first_sample: number of the first sample of the first global batch.
        micro_batch_size: samples of `plan.sequence_length` in one forward pass; of another length, as many as hold the
            same tokens, but at least one.
        rank: data-parallel rank of this process.
        world_size: data-parallel size.
        objective: makes inputs and labels of rows.
        kept: what a teacher said of the samples, which is given to the model, too.
        keyed: whether the model is given the keys of rows, `row_keys`: dropout follows from them.
        prefetch: groups of batches that are prepared in advance.

    Raises:
        BigtrainError: a global batch size does not divide into micro-batches on all ranks, or the plan skips a document
            that is not there.
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
        objective: Objective | None = None,
        kept: KeptOutputs | None = None,
        keyed: bool = False,
        prefetch: int = 2,
    ) -> None:
        divide_work(plan.batches, micro_batch_size, world_size)
        if [(p.dataset.dataset_id, p.pack_id) for p in packings] != [(s.dataset_id, s.pack_id) for s in plan.sources]:
            raise ValueError("these are not the datasets that the plan was made from")
        self._plan, self._packings = plan, list(packings)
        self._first_step = plan.batches.step_of(first_sample)
        if plan.batches.samples_of(self._first_step).start != first_sample:
            raise ValueError(f"no step begins with sample {first_sample}")
        self._micro_batch_size = micro_batch_size
        self._rank, self._world_size = rank, world_size
        self._unlabelled = find_unlabelled(plan, packings)
        self._objective = objective or Causal()
        self._kept, self._keyed = kept, keyed
        self._keys = AddressKeys(plan.seed, [source.name for source in plan.sources])
        self._ready: deque[RankBatch] = deque()
        self._queue: queue.Queue[list[RankBatch] | BaseException] = queue.Queue(prefetch)
        self._failure: BaseException | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="bigtrain-loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[RankBatch]:
        return self

    def __next__(self) -> RankBatch:
        """The next batch. An error of the thread is raised here, and again at every later call."""
        if self._ready:
            return self._ready.popleft()
        while self._failure is None and not self._closed.is_set():
            try:
                item = self._queue.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if not self._thread.is_alive() and self._queue.empty():
                    self._failure = RuntimeError("the loader's thread ended without an error")
                continue
            if isinstance(item, list):
                self._ready.extend(item)
                return self._ready.popleft()
            self._failure = item
        if self._failure is not None:
            raise self._failure
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and discard the prepared batches."""
        self._closed.set()
        self._ready.clear()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.01)  # it may be waiting for a free slot
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
            for group in self._groups():
                reached("data")
                self._queue.put(self._assembled(group))
                if self._closed.is_set():
                    return
        except Exception as error:
            self._queue.put(error)

    def _groups(self) -> Iterator[PlannedGroup]:
        """This rank's shares of all steps: the first alone, so that it is ready at once, then growing groups. All
        samples of a group have one length."""
        batches, step, rows_at_once = self._plan.batches, self._first_step, 1
        while True:
            shares: deque[I64] = deque()
            rows, stage = 0, batches.stage_of(step)
            tokens = int(self._plan.sequence_length * stage.length)
            most_rows = max(1, min(ROWS_AT_ONCE, TOKENS_AT_ONCE // tokens))
            rows_at_once = min(rows_at_once, most_rows)
            while rows < ROWS_AHEAD and batches.stage_of(step + len(shares)).length == stage.length:
                samples = batches.samples_of(step + len(shares))
                size = len(samples) // self._world_size
                start = samples.start + self._rank * size
                shares.append(np.arange(start, start + size))
                rows += size
            step += len(shares)
            planned = np.concatenate(shares)
            addresses = self._plan.locate_many(planned)
            first = 0
            while shares:
                sizes: list[int] = []
                while shares and sum(sizes) < rows_at_once:
                    sizes.append(len(shares.popleft()))
                own = slice(first, first + sum(sizes))
                yield PlannedGroup(
                    sizes,
                    planned[own],
                    SampleAddresses(*(field[own] for field in addresses)),
                    stage.micro_batch_size(self._micro_batch_size),
                )
                first, rows_at_once = own.stop, min(2 * rows_at_once, most_rows)

    def _assembled(self, group: PlannedGroup) -> list[RankBatch]:
        """The batches of a group of steps."""
        samples, addresses = group.samples, group.addresses
        fetch(self._packings, addresses.source, addresses.sequence)
        rows = assemble(self._packings, addresses.source, addresses.sequence, with_next=self._objective.reads_next_ids)
        for skip in self._unlabelled:
            skip.apply(rows, samples, addresses)
        # The keys cost two per cent of what the causal objective takes in all.
        draws = self._keyed or self._objective.changes_inputs
        keys = self._keys.of(*addresses) if draws else np.zeros(len(samples), np.uint64)
        rows = replace(rows, turns=addresses.sequence + addresses.epoch) if draws else rows
        prepared = self._objective.prepare(rows, keys)
        given = prepared if self._kept is None else self._kept.beside(addresses, prepared)
        rows_of_each = group.micro_batch_size
        micro_batches = micro_batches_of(given, rows_of_each, keys if self._keyed else None)
        batches, first = [], 0
        for size in group.sizes:
            last = first + size
            own = micro_batches[first // rows_of_each : last // rows_of_each]
            position = self._rank * size  # position of this rank's first row in the global batch
            batches.append(
                RankBatch(
                    first_sample=int(samples[first]) - position,
                    micro_batches=own,
                    label_tokens=sum(batch.label_tokens for batch in own),
                    input_tokens=sum(batch.input_tokens for batch in own),
                    label_examples=sum(batch.label_examples for batch in own),
                    digest=wrap_int64(digest_rows(rows.input_ids[first:last], position)),
                    loss_terms=1 if prepared.label_examples is None else 2,
                    inputs_digest=self._digest_of_inputs(prepared, slice(first, last), position),
                )
            )
            first = last
        return batches

    def _digest_of_inputs(self, prepared: PreparedRows, own: slice, position: int) -> int:
        return wrap_int64(digest_inputs(prepared, own, position)) if self._objective.changes_inputs else 0

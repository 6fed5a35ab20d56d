"""The loader: each rank assembles its own slice of every global batch, ahead of time, in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType

import numpy as np

from bigtrain.config.errors import BigtrainError
from bigtrain.data.batch import MicroBatch, RankBatch, digest_rows, wrap_int64
from bigtrain.data.packing import pack
from bigtrain.data.plan import Plan
from bigtrain.data.store import Dataset, fetch

PLAN_AHEAD = 1024
"""Samples whose addresses are computed at a time."""
POLL_SECONDS = 1.0


class Loader:
    """An endless iterator over the `RankBatch`es of one rank, from `first_sample` on.

    Of the global batch [g, g + global_batch_size) rank r reads the r-th of world_size equal, contiguous slices. What
    a global batch holds depends on the plan and g alone. The state to resume from is {consumed_samples, plan_id}:
    pass consumed_samples as first_sample. Use it as a context manager, or call `close`.

    Args:
        plan: the order of the samples.
        datasets: the training datasets that the plan was made from, in its order.
        first_sample: number of the first global batch's first sample.
        global_batch_size: samples in one step, over all ranks.
        micro_batch_size: samples in one forward pass.
        rank: this process.
        world_size: all processes.
        prefetch: batches held ready.

    Raises:
        BigtrainError: global_batch_size does not divide into micro-batches on all ranks.
    """

    def __init__(
        self,
        plan: Plan,
        datasets: Sequence[Dataset],
        *,
        first_sample: int = 0,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 4,
    ) -> None:
        _require_divisible(global_batch_size, micro_batch_size, world_size)
        if [d.dataset_id for d in datasets] != [s.dataset_id for s in plan.sources]:
            raise ValueError("these are not the datasets that the plan was made from")
        self._plan, self._datasets = plan, list(datasets)
        self._first_sample = first_sample
        self._global_batch_size, self._micro_batch_size = global_batch_size, micro_batch_size
        self._share = global_batch_size // world_size
        self._offset = rank * self._share
        self._queue: queue.Queue[RankBatch | BaseException] = queue.Queue(prefetch)
        self._failure: BaseException | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="bigtrain-loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[RankBatch]:
        return self

    def __next__(self) -> RankBatch:
        """The next batch. What went wrong in the background is raised here, and again at every later call."""
        while self._failure is None and not self._closed.is_set():
            try:
                item = self._queue.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if not self._thread.is_alive() and self._queue.empty():
                    self._failure = RuntimeError("the loader's thread died without a word")
                continue
            if isinstance(item, RankBatch):
                return item
            self._failure = item
        if self._failure is not None:
            raise self._failure
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and drop what it had prepared."""
        self._closed.set()
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
            for batch in self._batches():
                self._queue.put(batch)
                if self._closed.is_set():
                    return
        except BaseException as error:
            self._queue.put(error)

    def _batches(self) -> Iterator[RankBatch]:
        for first_sample, rows in self._slices():
            fetch(rows, self._plan.sequence_length)
            micro_batches = []
            digest = 0
            for start in range(0, self._share, self._micro_batch_size):
                packed = pack(rows[start : start + self._micro_batch_size], self._plan.sequence_length)
                digest += digest_rows(packed, self._offset + start)
                micro_batches.append(MicroBatch.of(packed))
            yield RankBatch(
                first_sample=first_sample,
                micro_batches=micro_batches,
                label_tokens=sum(batch.label_tokens for batch in micro_batches),
                input_tokens=sum(batch.input_tokens for batch in micro_batches),
                digest=wrap_int64(digest),
            )

    def _slices(self) -> Iterator[tuple[int, list[tuple[Dataset, int]]]]:
        """For every global batch its first sample, and the rows that are this rank's."""
        batches = max(1, PLAN_AHEAD // self._share)
        own = self._offset + np.arange(self._share)
        first = self._first_sample
        while True:
            firsts = first + self._global_batch_size * np.arange(batches)
            addresses = self._plan.locate_many((firsts[:, None] + own).reshape(-1))
            rows = [
                (self._datasets[source], sequence)
                for source, sequence in zip(addresses.source.tolist(), addresses.sequence.tolist(), strict=True)
            ]
            for index in range(batches):
                yield int(firsts[index]), rows[index * self._share : (index + 1) * self._share]
            first += self._global_batch_size * batches


def _require_divisible(global_batch_size: int, micro_batch_size: int, world_size: int) -> None:
    unit = micro_batch_size * world_size
    if global_batch_size % unit:
        below = global_batch_size // unit * unit
        nearest = f"{below} or {below + unit}" if below else str(unit)
        raise BigtrainError(
            "train.global_batch_size does not divide into micro-batches on all processes",
            found=f"global_batch_size {global_batch_size}, micro_batch_size {micro_batch_size}, {world_size} processes",
            wanted=f"a multiple of {micro_batch_size} x {world_size} = {unit}",
            fix=f"set train.global_batch_size to {nearest}, or change micro_batch_size or the number of processes",
        )

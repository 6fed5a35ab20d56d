"""Tokens and documents for `train_gpu.py`: the same for everyone, whatever the micro-batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from train_gpu_cases import WARMUP_STEPS, Work

if TYPE_CHECKING:
    from bigtrain.data import MicroBatch


class Data:
    """The rows of all steps, and where documents end in them."""

    def __init__(self, work: Work, vocab_size: int, whole_rows: bool) -> None:
        """Draw the rows of all steps.

        Args:
            work: how many.
            vocab_size: V; ids are 1 to V - 1 with a density like 1 / id (Zipf's law), as text has them.
            whole_rows: each row is one document; else documents have log-normal lengths, a sixth of a row in the
                median, and are cut where a row ends.
        """
        steps = WARMUP_STEPS + work.steps
        uniform = np.random.default_rng(0).random((steps, work.rows, work.length + 1))
        self.window = np.power(vocab_size, uniform).astype(np.uint32)
        self.length = work.length
        lengths = np.random.default_rng(1).lognormal(math.log(work.length / 6), 1.0, (steps, work.rows, work.length))
        ends = np.cumsum(np.maximum(2, lengths).astype(np.int64), axis=-1)
        self._ends = [
            [np.empty(0, np.int64) if whole_rows else row[row < work.length] for row in step] for step in ends
        ]

    def packed(self, micro_batch_size: int) -> Iterator[list[MicroBatch]]:
        """The micro-batches of each step."""
        for window, ends in zip(self.window, self._ends, strict=True):
            yield [
                pack(window[first : first + micro_batch_size], ends[first : first + micro_batch_size])
                for first in range(0, len(window), micro_batch_size)
            ]

    def tokens_seen_on_average(self) -> float:
        """Tokens that a token attends to: (n + 1) / 2 in a document of n."""
        rows = [np.diff(np.concatenate(([0], row, [self.length]))) for step in self._ends for row in step]
        lengths = np.concatenate(rows)
        return float((lengths * (lengths + 1) / 2).sum() / lengths.sum())


def pack(window: npt.NDArray[np.uint32], ends: list[npt.NDArray[np.int64]]) -> MicroBatch:
    """Rows [B, T + 1], with the places in each where a document ends, as the loader hands them out."""
    from bigtrain.base.labels import IGNORE_INDEX
    from bigtrain.data.batch.batch import micro_batches_of
    from bigtrain.objective import PreparedRows

    batch, length = window.shape[0], window.shape[1] - 1
    end = np.concatenate([row + index * length for index, row in enumerate(ends)])
    boundaries = np.union1d(end, np.arange(0, (batch + 1) * length, length))
    labels = window[:, 1:].astype(np.int32)
    labels.reshape(-1)[end - 1] = IGNORE_INDEX
    positions = np.arange(batch * length) - np.repeat(boundaries[:-1], np.diff(boundaries))
    rows = PreparedRows(
        input_ids=window[:, :-1].astype(np.int32),
        labels=labels,
        positions=positions.reshape(batch, length).astype(np.int32),
        boundaries=boundaries,
        label_tokens=np.array([length - len(row) for row in ends]),
        input_tokens=np.full(batch, length),
    )
    (micro_batch,) = micro_batches_of(rows, batch)
    return micro_batch

"""Validation: the same held-out sequences every time, split over ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bigtrain.data.batch import MicroBatch
from bigtrain.data.packing import pack
from bigtrain.data.permutation import permutation
from bigtrain.data.store import Dataset, fetch


def validation_batches(
    dataset: Dataset,
    *,
    sequence_length: int,
    max_sequences: int | None,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[MicroBatch]:
    """Micro-batches over (at most `max_sequences` of) the sequences of one validation dataset.

    Which ones is decided by a fixed permutation, so they are the same every time, at any world size, and a smaller
    number is a subset of a larger one. Ranks get contiguous slices. All ranks yield equally many micro-batches of
    equal shape, filled up with rows without labels, so that collectives inside a forward pass always meet.
    """
    available = dataset.sequences(sequence_length)
    count = available if max_sequences is None else min(max_sequences, available)
    if not count:
        return
    order = permutation(available, "validation", dataset.name).many(np.arange(count, dtype=np.uint64)).tolist()
    per_rank = -(-count // world_size)
    padded = -(-per_rank // micro_batch_size) * micro_batch_size
    own = order[rank * per_rank : (rank + 1) * per_rank]
    own += [available] * (padded - len(own))  # a sequence behind the last is all padding
    for start in range(0, padded, micro_batch_size):
        rows = [(dataset, sequence) for sequence in own[start : start + micro_batch_size]]
        fetch(rows, sequence_length)
        yield MicroBatch.of(pack(rows, sequence_length))

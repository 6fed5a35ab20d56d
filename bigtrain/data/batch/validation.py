"""Validation: the same held-out sequences every time, split over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from bigtrain.data.batch.assemble import assemble
from bigtrain.data.batch.batch import MicroBatch, micro_batches_of
from bigtrain.data.batch.packing import Packing, fetch
from bigtrain.data.order.permutation import permutation
from bigtrain.objective import AddressKeys, Causal, Objective


def validation_batches(
    packing: Packing,
    *,
    max_sequences: int | None,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    objective: Objective | None = None,
) -> Iterator[MicroBatch]:
    """Micro-batches over the sequences of one validation dataset, at most `max_sequences` of them.

    A fixed permutation chooses the sequences, so they are the same every time, at any world size, and a smaller number
    is a subset of a larger one. Ranks get contiguous slices. All ranks yield the same number of micro-batches of the
    same shape, padded with rows without labels, so that collectives inside a forward pass match. What an objective does
    to a sequence is the same in every evaluation, and for every seed of a run.

    The packing is that of `held_out_packing`: documents are cut as `concat` does, whatever the packing of the training
    is, so that losses can be compared; but pairs stay whole.
    """
    dataset = packing.dataset
    objective, keys = objective or Causal(), AddressKeys(0, [f"validation of {dataset.name}"])
    available = packing.rows
    count = available if max_sequences is None else min(max_sequences, available)
    if not count:
        return
    order = permutation(available, "validation", dataset.name).many(np.arange(count, dtype=np.uint64)).tolist()
    per_rank = -(-count // world_size)
    padded = -(-per_rank // micro_batch_size) * micro_batch_size
    own = order[rank * per_rank : (rank + 1) * per_rank]
    own += [available] * (padded - len(own))  # the number after the last sequence gives padding
    for start in range(0, padded, micro_batch_size):
        sequences = np.array(own[start : start + micro_batch_size])
        of_one_source = np.zeros_like(sequences)
        fetch([packing], of_one_source, sequences)
        rows = replace(
            assemble([packing], of_one_source, sequences, with_next=objective.reads_next_ids), turns=sequences
        )
        prepared = objective.prepare(rows, keys.of(of_one_source, of_one_source, sequences))
        yield from micro_batches_of(prepared, micro_batch_size)

"""Packs the documents of one shard, one group of documents at a time."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from bigtrain.data.build.pack import best_fit, buckets
from bigtrain.data.format.pack_file import I64, ShardPack

PACK_TOKENS = 1 << 23
"""Approximate number of tokens of consecutive documents that are packed as a group: enough that few rows have free
space, and few enough that the spans of a row are within a few blocks of the shard."""


class Algorithm(Protocol):
    """A packing: how documents are cut into spans, and spans are assigned to rows."""

    def cut(self, lengths: I64, sequence_length: int) -> I64:
        """The lengths [m] of the spans of documents of these lengths [n], in the order of the stream."""
        ...

    def assign(self, spans: I64, sequence_length: int) -> I64:
        """The row [m] of each span; rows are 0, 1, ..., in any order."""
        ...


ALGORITHMS: dict[str, Algorithm] = {"best_fit": best_fit, "buckets": buckets}


def pack_shard(offset: I64, packing: str, sequence_length: int) -> ShardPack:
    """Pack the documents of a shard.

    Args:
        offset: [n+1], the first token of each document, and the number of tokens.
        packing: `best_fit` or `buckets`.
        sequence_length: T.

    Raises:
        BigtrainError: the shard has more spans than a pack can count.
    """
    algorithm = ALGORITHMS[packing]
    groups = max(1, round(int(offset[-1]) / PACK_TOKENS))
    ends = np.arange(1, groups + 1) * int(offset[-1]) // groups
    bounds = np.unique(np.searchsorted(offset, [0, *ends]))  # a document may be longer than a group
    spans, bins = [], []
    opened = 0
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        spans.append(algorithm.cut(np.diff(offset[begin : end + 1]), sequence_length))
        bins.append(opened + algorithm.assign(spans[-1], sequence_length))
        opened = int(bins[-1].max()) + 1
    return ShardPack.from_assignment(np.concatenate(spans), np.concatenate(bins))

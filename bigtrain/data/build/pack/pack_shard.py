"""Packs the documents of one shard, one group of documents at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from bigtrain.data.build.pack import best_fit, buckets
from bigtrain.data.build.pack.documents import DocumentGroup
from bigtrain.data.build.pack.sentence_pairs import PairPacking
from bigtrain.data.format.pack_file import I64, ShardPack

PACK_TOKENS = 1 << 23
"""Approximate number of tokens of consecutive documents that are packed as a group: enough that few rows have free
space, and few enough that the spans of a row are within a few blocks of the shard."""

Algorithm = Callable[[DocumentGroup, int], tuple[I64, I64]]
"""A packing: documents and T to the lengths [m] of the spans that they are cut into, in the order of the stream, and
the row [m] of each; rows are 0, 1, ..., in any order."""

ALGORITHMS: Mapping[str, Algorithm] = {
    "best_fit": best_fit.pack,
    "buckets": buckets.pack,
    "sentence_pairs": PairPacking(exchanged=False).pack,
    "next_sentence_pairs": PairPacking(exchanged=True).pack,
}


def pack_shard(
    offset: I64, packing: str, sequence_length: int, sentence_ends: npt.NDArray[np.bool_] | None = None
) -> ShardPack:
    """Pack the documents of a shard.

    Args:
        offset: [n+1], the first token of each document, and the number of tokens.
        packing: a key of `ALGORITHMS`.
        sequence_length: T.
        sentence_ends: [tokens], whether a token ends a sentence; only packings of sentences need it.

    Raises:
        BigtrainError: the shard has more spans than a pack can count.
    """
    groups = max(1, round(int(offset[-1]) / PACK_TOKENS))
    targets = np.arange(1, groups + 1) * int(offset[-1]) // groups
    bounds = np.unique(np.searchsorted(offset, [0, *targets]))  # a document may be longer than a group
    spans, bins = [], []
    opened = 0
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        first, last = int(offset[begin]), int(offset[end])
        ends = np.empty(0, np.bool_) if sentence_ends is None else sentence_ends[first:last]
        lengths, rows = ALGORITHMS[packing](
            DocumentGroup(np.diff(offset[begin : end + 1]), ends, first), sequence_length
        )
        spans.append(lengths)
        bins.append(opened + rows)
        opened = int(bins[-1].max()) + 1
    return ShardPack.from_assignment(np.concatenate(spans), np.concatenate(bins))

"""Bucket packing: a document is cut into powers of two, and a row holds spans of one length.

Pouransari et al. 2024, "Dataset Decomposition: Faster LLM Training with Variable Sequence Length Curriculum"
(arXiv 2405.13226): the binary digits of a document's length decide how it is cut. T is a power of two, so that the rows
of each bucket have T tokens. A document is cut into spans of T tokens, as many as fit, then of T/2, T/4, ...,
MIN_BUCKET, each at most once, the longest first.

The paper drops spans that are shorter than its smallest bucket. Here nothing is lost: those spans, and the spans of
buckets that do not fill their last row, are packed by best-fit into rows of their own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bigtrain.data.build.pack import best_fit
from bigtrain.data.build.pack.documents import DocumentGroup

MIN_BUCKET = 64
"""Tokens in the shortest spans that have rows of their own."""

I64 = npt.NDArray[np.int64]


def pack(documents: DocumentGroup, sequence_length: int) -> tuple[I64, I64]:
    """The spans [m] of documents, and the row [m] of each: see `pack_shard.Algorithm`."""
    spans = cut(documents.lengths, sequence_length)
    return spans, assign(spans, sequence_length)


def cut(lengths: I64, sequence_length: int) -> I64:
    """The spans [m] of documents of these lengths [n], in their order."""
    sizes = _bucket_sizes(sequence_length)
    smallest = sizes[-1]
    length = np.empty((len(lengths), len(sizes) + 1), np.int64)
    length[:, :-1] = sizes
    length[:, -1] = lengths % smallest
    count = np.empty_like(length)
    count[:, 0] = lengths // sequence_length
    count[:, 1:-1] = (lengths[:, None] & length[:, 1:-1]) != 0
    count[:, -1] = length[:, -1] != 0
    return np.repeat(length.reshape(-1), count.reshape(-1))


def assign(spans: I64, sequence_length: int) -> I64:
    """The row [m] of spans of these lengths [m], as `cut` makes them."""
    bins = np.empty(len(spans), np.int64)
    opened = 0
    alone = np.ones(len(spans), bool)  # the spans that are not in a row of their bucket
    for size in _bucket_sizes(sequence_length):
        bucket = np.flatnonzero(spans == size)
        each = sequence_length // size
        rows = len(bucket) // each
        filled = bucket[: rows * each]
        bins[filled] = opened + np.arange(len(filled)) // each
        alone[filled] = False
        opened += rows
    bins[alone] = opened + best_fit.assign(spans[alone], sequence_length)
    return bins


def _bucket_sizes(sequence_length: int) -> list[int]:
    """T, T/2, ..., MIN_BUCKET; only T if it is not larger than that."""
    sizes = [sequence_length]
    while sizes[-1] > MIN_BUCKET:
        sizes.append(sizes[-1] // 2)
    return sizes

"""Concat packing: sequence i of a dataset is tokens [i*T, (i+1)*T) of its stream, documents one after the other.

- Every token is an input exactly once an epoch. The tail is not dropped: the last row is filled up with end-of-text
  tokens, which are a document of their own and have no labels.
- A label is the next token of the same document; for a row's last token that is the first token of the next row.
  So every token but a document's first is a label exactly once. A document's last token has none: IGNORED.
- Attention and positions stay inside the part of a document that is visible in the row. A row that starts in the
  middle of a document starts at position 0, for what came before is not attended to.

Boundaries come from the `.doc` columns; an end-of-text token inside a text means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bigtrain.data.store import Dataset

IGNORED = -100
"""The label of a token that has none."""

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PackedRows:
    """B rows of T tokens."""

    window: npt.NDArray[np.uint32]
    """[B, T+1]: each row's tokens and the one behind it."""
    labels: I64
    """[B, T]"""
    positions: I64
    """[B, T]"""
    boundaries: npt.NDArray[np.int32]
    """[D+1]: where documents start among the B*T tokens, and B*T. Each row starts one."""
    max_document: int
    """Tokens in the longest of these D documents."""
    label_tokens: int
    """Labels that are not IGNORED."""
    input_tokens: int
    """Tokens that are not padding."""


def pack(rows: Sequence[tuple[Dataset, int]], sequence_length: int) -> PackedRows:
    """Assemble rows, each given as dataset and sequence number; a number behind the last is a row of padding."""
    batch, length = len(rows), sequence_length
    window = np.empty((batch, length + 1), np.uint32)
    ends, padded = [], []  # ends: where documents end, counted from the start of the batch
    padding = 0
    for row, (dataset, sequence) in enumerate(rows):
        filled, inside = _read(dataset, sequence * length, window[row])
        ends.append(inside + row * length)
        if filled < length:
            window[row, filled:] = dataset.end_of_text
            padded.append((row, filled))
            padding += length - filled
    end = np.concatenate(ends)

    labels = window[:, 1:].astype(np.int64)
    labels.reshape(-1)[end - 1] = IGNORED
    for row, filled in padded:
        labels[row, filled:] = IGNORED

    boundaries = np.concatenate((end, np.arange(0, (batch + 1) * length, length)))
    boundaries.sort()
    boundaries = boundaries[np.concatenate((boundaries[1:] != boundaries[:-1], [True]))]
    lengths = np.diff(boundaries)
    positions = _arange(batch * length) - np.repeat(boundaries[:-1], lengths)
    return PackedRows(
        window=window,
        labels=labels,
        positions=positions.reshape(batch, length),
        boundaries=boundaries.astype(np.int32),
        max_document=int(lengths.max()),
        label_tokens=batch * length - len(end) - padding,
        input_tokens=batch * length - padding,
    )


def _read(dataset: Dataset, start: int, window: npt.NDArray[np.uint32]) -> tuple[int, I64]:
    """Fill `window` [T+1] with the stream's tokens from `start` on, as far as they go.

    Returns how many of the first T there were, and where documents end among them: offsets in 1..T.
    """
    length = len(window) - 1
    if start >= dataset.tokens:
        return 0, np.empty(0, np.int64)
    filled = 0
    ends: list[I64] = []
    index = dataset.shard_at(start)
    while filled <= length and index < len(dataset.shards):
        shard, base = dataset.shards[index], dataset.starts[index]
        low = start + filled - base
        tokens = shard.read(low, low + length + 1 - filled, dataset.manifest.vocab_size)
        window[filled : filled + len(tokens)] = tokens
        offsets = shard.documents.offset
        first, last = offsets.searchsorted((low, low + length - filled), "right")
        ends.append(offsets[first:last] - (low - filled))
        filled += len(tokens)
        index += 1
    return min(filled, length), ends[0] if len(ends) == 1 else np.concatenate(ends)


@lru_cache(maxsize=8)
def _arange(count: int) -> I64:
    return np.arange(count)

"""From sequences to rows of tokens, what follows each, positions and boundaries.

- The next token is one of the same document, even if that is in another row. So every token except a document's first
  is a next token exactly once in an epoch. Nothing follows a document's last token: IGNORE_INDEX.
- Attention and positions stay inside the part of a document that is in the row. Positions of a part that continues a
  document start at 0 too, because the earlier tokens are not attended to.
- A row that is not full is padded with end-of-text tokens, which form a document of their own, and no next tokens.

Boundaries come from the `.doc` columns. An end-of-text token inside a text has no effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bigtrain.base import IGNORE_INDEX
from bigtrain.data.batch.packing import Packing, Spans
from bigtrain.data.store.store import Dataset, TokenShard
from bigtrain.objective import TokenRows

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def assemble(packings: Sequence[Packing], sources: I64, sequences: I64, *, with_next: bool = True) -> TokenRows:
    """Assemble rows.

    Args:
        packings: the sources.
        sources: i64 [R], the index of each row's source in `packings`. All of these have sequences of one length.
        sequences: i64 [R], the number of each row's sequence. The number after the last gives a row of padding.
        with_next: whether `next_ids` are made, for an objective that reads them.

    Raises:
        BigtrainError: a shard cannot be read, or has an id that is not in the vocabulary.
    """
    rows, length = len(sequences), packings[int(sources[0])].sequence_length
    ids, *following, positions = np.empty((2 + with_next, rows, length), np.int32)  # cheaper than three allocations
    next_ids = following[0] if with_next else np.empty((rows, 0), np.int32)
    input_tokens = np.zeros(rows, np.int64)
    labelled = any(packing.dataset.summary.labels for packing in packings)
    labels = np.full((rows, length), IGNORE_INDEX, np.int32) if labelled else None
    pairs, continued = [packing.makes_pairs for packing in packings], []
    ends, cuts = [], [np.arange(0, (rows + 1) * length, length)]  # of documents, and of spans
    for source in np.unique(sources).tolist():
        own = np.flatnonzero(sources == source)
        spans = packings[source].spans(sequences[own])
        spans = spans._replace(row=own[spans.row])
        places = spans.row * length + spans.offset
        for shard, chosen in _by_shard(packings[source].dataset, spans):
            ends.append(_copy(shard, places[chosen], spans.start[chosen], spans.length[chosen], ids, next_ids))
            if labels is not None and packings[source].dataset.summary.labels:
                _copy_labels(shard, places[chosen], spans.start[chosen], spans.length[chosen], labels)
        cuts.append(places + spans.length)
        if pairs[source]:
            continued.append(places[_continuing(spans)])
        filled = np.bincount(spans.row, spans.length, rows).astype(np.int64)
        for row in own[filled[own] < length].tolist():
            ids[row, filled[row] :] = packings[source].dataset.end_of_text
            next_ids[row, filled[row] :] = IGNORE_INDEX
        input_tokens += filled
    _check_vocabulary(packings, ids, next_ids, sources, sequences)

    end = np.concatenate(ends) if ends else np.empty(0, np.int64)
    if with_next:
        next_ids.reshape(-1)[end - 1] = IGNORE_INDEX
    boundaries = np.concatenate((end, *cuts))
    boundaries.sort()
    boundaries = boundaries[np.concatenate((boundaries[1:] != boundaries[:-1], [True]))]
    starts = np.repeat(boundaries[:-1].astype(np.int32), np.diff(boundaries)).reshape(rows, length)
    np.subtract(_arange(rows * length).reshape(rows, length), starts, out=positions)
    return TokenRows(
        input_ids=ids,
        next_ids=next_ids,
        positions=positions,
        boundaries=boundaries,
        next_tokens=input_tokens - np.bincount((end - 1) // length, minlength=rows),
        input_tokens=input_tokens,
        labels=labels,
        follows=_follows(boundaries, np.concatenate(continued), end) if continued else None,
    )


def _continuing(spans: Spans) -> I64:
    """The spans, by index, that begin in their shard where the one before them in the row ends."""
    one, other = (Spans(*(field[part] for field in spans)) for part in (slice(None, -1), slice(1, None)))
    same = (one.row == other.row) & (one.shard == other.shard) & (one.start + one.length == other.start)
    return np.flatnonzero(same) + 1


def _follows(boundaries: I64, continued: I64, ends: I64) -> Bools:
    """[D], whether a part at one of the boundaries goes on with a document.

    Args:
        boundaries: [D+1].
        continued: places of spans that go on with the span before them.
        ends: where documents end.
    """
    return np.isin(boundaries[:-1], np.setdiff1d(continued, ends))


def _by_shard(dataset: Dataset, spans: Spans) -> Iterable[tuple[TokenShard, I64 | slice]]:
    """The shards that spans are in, with the indices of their spans."""
    first = spans.shard[0] if len(spans.shard) else 0
    if (spans.shard == first).all():
        return [(dataset.shards[first], slice(None))] if len(spans.shard) else []
    return ((dataset.shards[s], np.flatnonzero(spans.shard == s)) for s in np.unique(spans.shard).tolist())


def _copy(shard: TokenShard, places: I64, starts: I64, lengths: I64, ids: I32, next_ids: I32) -> I64:
    """Copy spans of a shard into the R*T tokens. Returns the ends of documents there, in any order."""
    offsets = shard.documents.offset
    first, last = offsets.searchsorted(starts, "right"), offsets.searchsorted(starts + lengths, "right")
    row_length = ids.shape[1]
    windows = shard.windows(row_length + 1) if len(starts) > 1 else None
    if windows is not None and (lengths == row_length).all() and int(starts.max()) < len(windows):
        rows, window = places // row_length, windows[starts]
        ids[rows] = window[:, :-1]
        if next_ids.size:
            next_ids[rows] = window[:, 1:]
    else:
        flat_ids, flat_next = ids.reshape(-1), next_ids.reshape(-1)
        for place, start, length in zip(places.tolist(), starts.tolist(), lengths.tolist(), strict=True):
            tokens = shard.slice(start, start + length + 1)  # one less at the end of a shard, where a document ends
            flat_ids[place : place + length] = tokens[:length]
            if next_ids.size:
                flat_next[place : place + len(tokens) - 1] = tokens[1:]
    counts = last - first
    before = np.cumsum(counts) - counts
    ends = offsets[np.arange(counts.sum()) + np.repeat(first - before, counts)]
    return ends + np.repeat(places - starts, counts)


def _copy_labels(shard: TokenShard, places: I64, starts: I64, lengths: I64, labels: I32) -> None:
    """Copy the labels of spans of a shard into those of the R*T tokens."""
    flat = labels.reshape(-1)
    for place, start, length in zip(places.tolist(), starts.tolist(), lengths.tolist(), strict=True):
        flat[place : place + length] = shard.labels[start : start + length]


def _check_vocabulary(packings: Sequence[Packing], ids: I32, next_ids: I32, sources: I64, sequences: I64) -> None:
    """Raise BigtrainError for an id that is not in the vocabulary: in the model the error would be unclear."""
    vocabulary = packings[0].dataset.summary.vocab_size
    largest = max(int(ids.max()), int(next_ids[:, -1:].max(initial=0)))  # each other next one is an input too
    if largest < vocabulary:
        return
    for source, sequence in zip(sources.tolist(), sequences.tolist(), strict=True):
        spans = packings[source].spans(np.array([sequence]))
        for shard, start, length in zip(*(field.tolist() for field in spans[2:]), strict=True):
            packings[source].dataset.shards[shard].read(start, start + length + 1, vocabulary)


@lru_cache(maxsize=8)
def _arange(count: int) -> I32:
    return np.arange(count, dtype=np.int32)

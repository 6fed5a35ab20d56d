"""Sentence pairs: a row is two segments, each of whole sentences (Devlin et al., 2019, appendix A.2).

A document is cut into chunks of whole sentences, each as long as a row takes. A chunk is cut into two segments after
one of its sentences. These are the row, or, with `exchanged`, half of the rows give their second segments to each
other: so one segment follows the other in half of the rows, and every token is still in exactly one row.

The released code of BERT draws the random segments again and again; here a segment is used once an epoch. Which rows
exchange, and where a chunk is cut, follows from the place of the chunk in the shard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from bigtrain.data.build.pack.documents import DocumentGroup
from bigtrain.objective import PAIR_TOKENS

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PairPacking:
    """The packings `sentence_pairs` and `next_sentence_pairs`."""

    exchanged: bool
    """Whether half of the rows exchange their second segments."""

    def pack(self, documents: DocumentGroup, sequence_length: int) -> tuple[I64, I64]:
        """See `Algorithm`."""
        chunks = _chunks(documents, sequence_length - PAIR_TOKENS)
        lengths, rows, second_of = [], [], []
        for row, (first, cut, end, _) in enumerate(chunks):
            if cut > first:
                lengths.append(cut - first)
                rows.append(row)
            second_of.append(len(rows))
            lengths.append(end - cut)
            rows.append(row)
        bins = np.array(rows, np.int64)
        if self.exchanged:
            for one, other in _exchanges(chunks, sequence_length - PAIR_TOKENS):
                bins[second_of[one]], bins[second_of[other]] = other, one
        return np.array(lengths, np.int64), bins


Chunk = tuple[int, int, int, int]
"""First token, first token of the second segment (the same, where it is alone), token after the last, document."""


def _chunks(documents: DocumentGroup, longest: int) -> list[Chunk]:
    """The chunks of documents, in the order of the stream."""
    ends = np.flatnonzero(documents.sentence_ends) + 1
    chunks: list[Chunk] = []
    start = 0
    for document, length in enumerate(documents.lengths.tolist()):
        stop = start + length
        while start < stop:
            limit = min(start + longest, stop)
            inside = ends[ends.searchsorted(start, "right") : ends.searchsorted(limit, "right")]
            end = stop if limit == stop else int(inside[-1]) if len(inside) else limit
            between = inside[inside < end]
            if len(between):
                cut = int(between[_number(documents.first + start) % len(between)])
            else:
                cut = start + (end - start) // 2
            chunks.append((start, cut, end, document))
            start = end
    return chunks


def _exchanges(chunks: list[Chunk], longest: int) -> list[tuple[int, int]]:
    """Pairs of rows that exchange their second segments: of two documents, and neither gets too long."""
    firsts, seconds = (np.array([chunk[k + 1] - chunk[k] for chunk in chunks], np.int64) for k in (0, 1))
    document = np.array([chunk[3] for chunk in chunks], np.int64)
    candidates = np.flatnonzero(firsts > 0)
    # Neighbours in the order of their lengths: what they exchange is about as long.
    order = candidates[np.lexsort((candidates, seconds[candidates]))]
    one, other = order[: len(order) // 2 * 2 : 2], order[1::2]
    fit = (firsts[one] + seconds[other] <= longest) & (firsts[other] + seconds[one] <= longest)
    fit &= document[one] != document[other]
    one, other = one[fit], other[fit]
    chosen = np.argsort([_number(row) for row in one.tolist()], kind="stable")[: len(candidates) // 4]
    return list(zip(one[chosen].tolist(), other[chosen].tolist(), strict=True))


def _number(place: int) -> int:
    return xxhash.xxh3_64_intdigest(place.to_bytes(8, "little"))

"""The permutation objective: some tokens are predicted one after the other, in a random order (Yang et al., 2019).

    document    a b c d e f g h, of which c, d and g are predicted, in the order d, g, c
    ranks       0 0 3 1 0 0 2 0     what is not predicted has the lowest rank: all see it
    labels      - - c d - - g -     at the place of each token itself

A token that is predicted sees those of lower ranks, and not itself; a model with two streams of attention keeps both.
Partial prediction (section 2.3 there): one token in K is predicted. Which ones is drawn as in the authors' code,
with lengths as in transformers' DataCollatorForPermutationLanguageModeling: a document is cut into stretches of K n
tokens, n uniform from 1 to `most`, and in each n tokens in a row are predicted, anywhere in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bigtrain.base import IGNORE_INDEX
from bigtrain.objective.parts import withheld_parts
from bigtrain.objective.randomness import U64, choices, numbers_at
from bigtrain.objective.rows import I64, Bools, PreparedRows, TokenRows
from bigtrain.objective.subsets import ragged

_LENGTHS, _STARTS, _ORDER = range(3)
"""The sites of the lengths of spans, of their places, and of the order."""


@dataclass(frozen=True)
class Permuted:
    """Predicts tokens in a random order; each part of a document in a row has an order of its own."""

    changes_inputs: ClassVar[bool] = True
    reads_next_ids: ClassVar[bool] = False
    causal: ClassVar[bool] = False

    every: int
    """K: one token in so many is predicted."""
    most: int
    """The largest number of tokens in a row that a stretch predicts."""
    ordinary: Bools
    """[V], whether a token may be predicted: special tokens may not, and are seen by all."""

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """See `Objective.prepare`. `others` has `order_ranks`, int32 [R, T]: which tokens a token sees."""
        ids, (count, length) = rows.input_ids.reshape(-1), rows.input_ids.shape
        chosen = self._chosen(rows, keys)
        labels, ranks = np.full_like(ids, IGNORE_INDEX), np.zeros_like(ids)
        labels[chosen] = ids[chosen]
        ranks[chosen] = _ranks(rows, keys, chosen)
        return PreparedRows(
            input_ids=rows.input_ids,
            labels=labels.reshape(count, length),
            positions=rows.positions,
            boundaries=rows.boundaries,
            label_tokens=np.diff(chosen.searchsorted(np.arange(count + 1) * length)),
            input_tokens=rows.input_tokens,
            others={"order_ranks": ranks.reshape(count, length)},
        )

    def _chosen(self, rows: TokenRows, keys: U64) -> I64:
        """The places of the tokens to predict among the R*T flattened ones, in order.

        Of a part one token at least is not chosen: the first one that was, where all of them were.
        """
        length = rows.input_ids.shape[1]
        keep = ~withheld_parts(rows)
        first, size = rows.boundaries[:-1][keep], np.diff(rows.boundaries)[keep]
        part, start, stretch, span = self._stretches(first, size, length, keys)
        row, place = np.divmod(start, length)
        begin = start + choices(numbers_at(keys, _STARTS, row, place), stretch - span + 1)
        inside = np.clip(first[part] + size[part] - begin, 0, span)
        places = ragged(begin, inside)
        places = places[self.ordinary[rows.input_ids.reshape(-1)[places]]]
        of_part = first.searchsorted(places, side="right") - 1
        whole = np.bincount(of_part, minlength=len(first)) == size
        leads = np.ones(len(places), np.bool_)
        leads[1:] = of_part[1:] != of_part[:-1]
        return places[~(leads & whole[of_part])]

    def _stretches(self, first: I64, size: I64, length: int, keys: U64) -> tuple[I64, I64, I64, I64]:
        """The stretches of parts [P] that start at `first`: of each its part, its start, its length and that of its
        span."""
        drawn = -(-size // self.every)  # no part has more of them
        part, number = np.repeat(np.arange(len(size)), drawn), ragged(np.zeros_like(drawn), drawn)
        row, place = np.divmod(first, length)
        span = 1 + choices(numbers_at(keys, _LENGTHS, row[part], place[part] + number), self.most)
        stretch = self.every * span
        total = np.cumsum(stretch) - stretch
        offset = total - total[np.cumsum(drawn) - drawn][part]
        inside = offset < size[part]
        part, offset, stretch, span = (each[inside] for each in (part, offset, stretch, span))
        return part, first[part] + offset, stretch, span


def _ranks(rows: TokenRows, keys: U64, chosen: I64) -> I64:
    """The ranks of the chosen places, from 1 in each part, in an order that is uniform."""
    length = rows.input_ids.shape[1]
    part = rows.boundaries.searchsorted(chosen, side="right") - 1
    row, place = np.divmod(chosen, length)
    words = numbers_at(keys, _ORDER, row, place).astype(np.int64)
    order = np.argsort((part << 32) | words, kind="stable")  # of equal numbers the first place comes first
    ranks = np.empty_like(chosen)
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    counts = np.diff(starts, append=len(part))
    ranks[order] = 1 + ragged(np.zeros_like(counts), counts)
    return ranks

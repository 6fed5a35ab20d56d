"""The masked objective: hidden tokens are predicted from both sides (Devlin et al., 2019, section 3.1).

Of the tokens that are chosen most become the mask token, some a random token, and some stay as they are. Masks differ
from epoch to epoch, since the epoch is part of a row's address (RoBERTa's dynamic masking; Liu et al., 2019,
section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from bigtrain.base import IGNORE_INDEX
from bigtrain.objective.randomness import U32, U64, below, choices, further, numbers
from bigtrain.objective.rows import I32, I64, Bools, PreparedRows, TokenRows
from bigtrain.objective.sentence_pairs import SentencePairs

_CHOICE = 0
"""The site of the choice of tokens."""


@dataclass(frozen=True)
class Masked:
    """Hides tokens; their labels are what they were."""

    changes_inputs: ClassVar[bool] = True
    causal: ClassVar[bool] = False

    mask_id: int
    rate: float
    """Probability that a token is chosen."""
    mask_share: float
    """Share of the chosen tokens that become the mask token."""
    random_share: float
    """Share of the chosen tokens that become a random ordinary token."""
    ordinary: Bools
    """[V], whether a token may be chosen, or stand for a chosen one: special tokens may not."""
    begins_word: Bools | None = None
    """[V], whether a token begins a word; then words are chosen in place of tokens. None: tokens."""
    pairs: SentencePairs | None = None
    """What makes pairs of rows of two segments, with a label each. None: rows stay as they are."""

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """See `Objective.prepare`."""
        if self.pairs is None:
            return self._masked(rows, keys)
        paired = self.pairs.joined(rows, keys)
        return replace(
            self._masked(paired.rows, keys),
            label_examples=np.count_nonzero(paired.example_labels != IGNORE_INDEX, axis=1),
            others={"token_type_ids": paired.token_type_ids, "example_labels": paired.example_labels},
        )

    def _masked(self, rows: TokenRows, keys: U64) -> PreparedRows:
        ids, (count, length) = rows.input_ids.reshape(-1), rows.input_ids.shape
        words = numbers(keys, _CHOICE, length)
        places, tokens = self._chosen(rows, words)
        labels, inputs = np.empty((2, ids.size), np.int32)  # one large allocation is cheaper than two
        labels.fill(IGNORE_INDEX)
        labels[places] = tokens
        inputs[:] = ids
        self._hide(inputs, places, words.reshape(-1).take(places))
        return PreparedRows(
            input_ids=inputs.reshape(count, length),
            labels=labels.reshape(count, length),
            positions=rows.positions,
            boundaries=rows.boundaries,
            label_tokens=np.diff(places.searchsorted(np.arange(count + 1) * length)),
            input_tokens=rows.input_tokens,
        )

    def _chosen(self, rows: TokenRows, words: U32) -> tuple[I64, I32]:
        """The places of the tokens to predict among the R*T flattened ones, in order; and these tokens.

        Padding is of special tokens, and so never chosen.
        """
        drawn = words < below(self.rate)
        if self.begins_word is not None:
            drawn = self._whole_words(rows, drawn, self.begins_word)
        for row, first, end in rows.withheld:
            drawn[row, first:end] = False
        places = np.flatnonzero(drawn)  # `take` is faster than an index in brackets
        tokens = rows.input_ids.reshape(-1).take(places)
        ordinary = self.ordinary.take(tokens)
        return (places, tokens) if ordinary.all() else (places[ordinary], tokens[ordinary])

    def _whole_words(self, rows: TokenRows, drawn: Bools, begins_word: Bools) -> Bools:
        """[R, T]: a token is drawn where the first one of its word is."""
        special = ~self.ordinary.take(rows.input_ids)
        begins = begins_word.take(rows.input_ids) | (rows.positions == 0) | special
        begins[:, 1:] |= special[:, :-1]
        first = np.maximum.accumulate(np.where(begins, np.arange(drawn.shape[1], dtype=np.int32), 0), axis=1)
        return np.take_along_axis(drawn, first, axis=1)

    def _hide(self, inputs: I32, places: I64, words: U32) -> None:
        """Replace the ids at places of the flattened tokens, or keep them, by a number that was drawn for each."""
        drawn = further(words)
        masked, either = (drawn < below(share) for share in (self.mask_share, self.mask_share + self.random_share))
        random = np.flatnonzero(masked ^ either)  # the shares add up: what is masked is below both bounds
        inputs[places.take(np.flatnonzero(masked))] = self.mask_id
        tokens = choices(further(drawn.take(random)), len(self._ordinary_ids))
        inputs[places.take(random)] = self._ordinary_ids.take(tokens)

    @cached_property
    def _ordinary_ids(self) -> I64:
        return np.flatnonzero(self.ordinary)

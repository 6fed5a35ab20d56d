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
from bigtrain.objective.randomness import U64, below, choices, further, happens, numbers_at
from bigtrain.objective.rows import I32, I64, Bools, PreparedRows, TokenRows
from bigtrain.objective.sentence_pairs import SentencePairs

_CHOICE, _MASK, _RANDOM = 0, 2, 4
"""Sites: which tokens are chosen, which of them become the mask token, and which of the others a random one. The first
two go on at the site after them."""


@dataclass(frozen=True)
class Masked:
    """Hides tokens; their labels are what they were."""

    changes_inputs: ClassVar[bool] = True
    reads_next_ids: ClassVar[bool] = False
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
        places, tokens = self._chosen(rows, keys)
        labels, inputs = np.empty((2, ids.size), np.int32)  # one large allocation is cheaper than two
        labels.fill(IGNORE_INDEX)
        labels[places] = tokens
        inputs[:] = ids
        inputs[places] = self.mask_id
        others = np.flatnonzero(~happens(keys, _MASK, length, self.mask_share, places))
        inputs[places.take(others)] = self._unmasked(keys, length, places.take(others), tokens.take(others))
        return PreparedRows(
            input_ids=inputs.reshape(count, length),
            labels=labels.reshape(count, length),
            positions=rows.positions,
            boundaries=rows.boundaries,
            label_tokens=np.diff(places.searchsorted(np.arange(count + 1) * length)),
            input_tokens=rows.input_tokens,
        )

    def _chosen(self, rows: TokenRows, keys: U64) -> tuple[I64, I32]:
        """The places of the tokens to predict among the R*T flattened ones, in order; and these tokens.

        Padding is of special tokens, and so never chosen.
        """
        drawn = happens(keys, _CHOICE, rows.input_ids.shape[1], self.rate).reshape(rows.input_ids.shape)
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
        begins = begins_word.take(rows.input_ids) | special
        begins[:, 1:] |= special[:, :-1]
        begins.reshape(-1)[rows.boundaries[:-1]] = True
        first = np.flatnonzero(begins)
        return np.repeat(drawn.reshape(-1).take(first), np.diff(first, append=drawn.size)).reshape(drawn.shape)

    def _unmasked(self, keys: U64, length: int, places: I64, tokens: I32) -> I32:
        """What stands for chosen tokens [n] that do not become the mask token: a random token, or the token itself."""
        words = numbers_at(keys, _RANDOM, *np.divmod(places, length))
        share = min(self.random_share / max(1 - self.mask_share, 1e-9), 1)
        random = self._ordinary_ids.take(choices(further(words), len(self._ordinary_ids)))
        return np.where(words < below(share), random, tokens)

    @cached_property
    def _ordinary_ids(self) -> I32:
        return np.flatnonzero(self.ordinary).astype(np.int32)

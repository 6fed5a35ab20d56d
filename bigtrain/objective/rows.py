"""Rows of tokens before and after an objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bigtrain.base import IGNORE_INDEX

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TokenRows:
    """R rows of T tokens, as the data have them.

    Documents do not see each other. A row that is not full ends in padding, which is a document of its own.
    """

    input_ids: I32
    """[R, T]"""
    next_ids: I32
    """[R, T], the token after the one at the same position of input_ids in its document, even if that is in another
    row; IGNORE_INDEX where there is none, and in documents that are not trained on. [R, 0] for an objective that does
    not read them."""
    positions: I32
    """[R, T], from 0 in each document."""
    boundaries: I64
    """[D+1]: where documents start in the R*T flattened tokens, and R*T. Each row starts a document."""
    next_tokens: I64
    """[R]: entries of next_ids that are not IGNORE_INDEX, where the objective reads them."""
    input_tokens: I64
    """[R]: tokens that are not padding."""
    withheld: list[tuple[int, int, int]] = field(default_factory=list)
    """Parts of documents that are not trained on: row, first token, token after the last one."""
    labels: I32 | None = None
    """[R, T], what the source says of each token, in padding IGNORE_INDEX; None where no source says anything."""
    turns: I64 | None = None
    """[R], whose turn a row is in a mixture of objectives: its sequence number plus its epoch."""
    follows: Bools | None = None
    """[D], whether a part of a document follows the part before it in the row in that document, too. None where the
    packing does not make pairs."""

    def chosen(self, which: I64) -> TokenRows:
        """Some of the rows [n], in rising order."""
        length = self.input_ids.shape[1]
        first = self.boundaries.searchsorted(which * length)
        after = self.boundaries.searchsorted((which + 1) * length)
        part = np.concatenate([np.arange(*bounds) for bounds in zip(first, after, strict=True)])
        number = np.full(len(self.input_ids), -1)
        number[which] = np.arange(len(which))
        row, place = np.divmod(self.boundaries[part], length)
        return TokenRows(
            input_ids=self.input_ids[which],
            next_ids=self.next_ids[which],
            positions=self.positions[which],
            boundaries=np.concatenate((number[row] * length + place, [len(which) * length])),
            next_tokens=self.next_tokens[which],
            input_tokens=self.input_tokens[which],
            withheld=[(int(number[row]), first, end) for row, first, end in self.withheld if number[row] >= 0],
            labels=None if self.labels is None else self.labels[which],
            turns=None if self.turns is None else self.turns[which],
            follows=None if self.follows is None else self.follows[part],
        )

    def withhold(self, row: int, first: int, end: int) -> None:
        """Train on no token from `first` to before `end` of a row; each of them is of one document."""
        following = self.next_ids[row, first:end]
        self.next_tokens[row] -= np.count_nonzero(following != IGNORE_INDEX)
        following[:] = IGNORE_INDEX
        self.withheld.append((row, first, end))


@dataclass(frozen=True)
class EncoderRows:
    """What the encoder of an encoder-decoder reads: R rows of S tokens.

    The documents of a row are as many as those of the decoder's row, in the same order: the n-th of the decoder attends
    to the n-th of the encoder. Padding is a document of its own on both sides, where there is any on one.
    """

    input_ids: I32
    """[R, S]"""
    positions: I32
    """[R, S], from 0 in each document."""
    boundaries: I64
    """[D+1]: where documents start in the R*S flattened tokens, and R*S. Each row starts a document."""


@dataclass(frozen=True)
class PreparedRows:
    """The same rows as an objective gives them to a model. For an encoder-decoder T is the length of its decoder."""

    input_ids: I32
    """[R, T]"""
    labels: I32
    """[R, T], what is to be predicted at each position; IGNORE_INDEX if nothing is."""
    positions: I32
    """[R, T], from 0 in each document."""
    boundaries: I64
    """[D+1]: where documents start in the R*T flattened tokens, and R*T. Each row starts a document."""
    label_tokens: I64
    """[R]: labels that are not IGNORE_INDEX."""
    input_tokens: I64
    """[R]: tokens of the data that are not padding."""
    label_examples: I64 | None = None
    """[R]: labels of whole examples that are not IGNORE_INDEX: those of `example_labels` in `others`."""
    others: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """What else the model takes, by the names of its arguments: arrays with R rows."""
    encoder: EncoderRows | None = None
    """For an encoder-decoder, whose decoder has the other fields."""

"""The prefix objective: what follows the start of a document is predicted from it (Raffel et al., 2020, section 3.2.1).

A decoder sees the tokens of that start, the prefix, from both sides.

    document      a b c d e f, with a prefix of 3 tokens
    ranks         2 2 2 3 4 5     a token sees those of its own rank and of lower ones
    labels        - - d e f -

The inputs are the tokens as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bigtrain.base import IGNORE_INDEX
from bigtrain.objective.randomness import U64, choices, numbers_at
from bigtrain.objective.rows import I64, PreparedRows, TokenRows

_LENGTH = 0
"""The site of the lengths of prefixes."""


@dataclass(frozen=True)
class Prefix:
    """Predicts the next token after a prefix that is seen from both sides.

    Each part of a document in a row has a prefix of its own, whose last token predicts the first one after it.
    """

    changes_inputs: ClassVar[bool] = True
    reads_next_ids: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    shortest: float = 0.0
    """The least share of a part that its prefix has; a prefix has one token at least."""
    longest: float = 1.0
    """The largest share. A prefix leaves one token at least."""

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """See `Objective.prepare`. `others` has `order_ranks`, int32 [R, T]: which tokens a token sees."""
        shape, size = rows.input_ids.shape, np.diff(rows.boundaries)
        row, place = np.divmod(rows.boundaries[:-1], shape[1])
        least, most = self._bounds(size)
        prefix = least + choices(numbers_at(keys, _LENGTH, row, place), most - least + 1)
        last = np.repeat((prefix - 1).astype(np.int32), size).reshape(shape)
        labels = np.where(rows.positions < last, np.int32(IGNORE_INDEX), rows.next_ids)
        return PreparedRows(
            input_ids=rows.input_ids,
            labels=labels,
            positions=rows.positions,
            boundaries=rows.boundaries,
            label_tokens=np.count_nonzero(labels != IGNORE_INDEX, axis=1),
            input_tokens=rows.input_tokens,
            others={"order_ranks": np.maximum(rows.positions, last)},
        )

    def _bounds(self, size: I64) -> tuple[I64, I64]:
        """The shortest and the longest prefix of parts of these sizes, in tokens: all between are as likely."""
        most = np.maximum(np.minimum(np.floor(size * self.longest).astype(np.int64), size - 1), 1)
        least = np.maximum(np.ceil(size * self.shortest).astype(np.int64), 1)
        return np.minimum(least, most), most

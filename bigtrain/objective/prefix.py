"""The prefix objective: what follows the start of a document is predicted from it (Raffel et al., 2020, section 3.2.1).

A decoder sees the tokens of that start, the prefix, from both sides.

    document      a b c d e f, with a prefix of 3 tokens
    sees until    c c c d e f
    labels        - - d e f -

The inputs are the tokens as they are. What makes a prefix of their start is `sees_until`, which the model has to follow
in its attention. A model that ignored it would have fewer labels and nothing for it. No architecture follows it yet:
the check of settings against architectures has to refuse this objective until one does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bigtrain.base import IGNORE_INDEX
from bigtrain.objective.randomness import U64, choices, numbers_at
from bigtrain.objective.rows import PreparedRows, TokenRows

_LENGTH = 0
"""The site of the lengths of prefixes."""


@dataclass(frozen=True)
class Prefix:
    """Predicts the next token after a prefix that is seen from both sides.

    Each part of a document in a row has a prefix of its own, of uniformly 1 token to all but the last. Its last token
    predicts the first one after it. `others` of the rows has what the attention needs:

        sees_until  int32 [R, T], for each token the last place in its row that it sees: the end of the prefix for the
                    tokens of a prefix, and its own place for the others. It sees no other document, as ever.
    """

    changes_inputs: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """See `Objective.prepare`."""
        shape, length = rows.input_ids.shape, rows.input_ids.shape[1]
        size = np.diff(rows.boundaries)
        row, place = np.divmod(rows.boundaries[:-1], length)
        prefix = 1 + choices(numbers_at(keys, _LENGTH, row, place), np.maximum(size - 1, 1))
        last = np.repeat((place + prefix - 1).astype(np.int32), size).reshape(shape)
        own = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
        labels = np.where(own < last, np.int32(IGNORE_INDEX), rows.next_ids)
        return PreparedRows(
            input_ids=rows.input_ids,
            labels=labels,
            positions=rows.positions,
            boundaries=rows.boundaries,
            label_tokens=np.count_nonzero(labels != IGNORE_INDEX, axis=1),
            input_tokens=rows.input_tokens,
            others={"sees_until": np.maximum(own, last)},
        )

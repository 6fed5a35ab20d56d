"""Fill in the middle: a causal model learns to write what stands between two texts (Bavarian et al., 2022).

    document    prefix middle suffix
    PSM         <PRE> prefix <SUF> suffix <MID> middle <EOT>
    SPM         <PRE> <SUF> suffix <MID> prefix middle <EOT>

Each part of a document in a row is transformed by itself, in the room that it has: the last tokens of its text make
room for the sentinels. So rows keep their boundaries, and no row grows. With best-fit packing nearly every part is a
whole document. The two cuts are uniform over its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bigtrain.base import IGNORE_INDEX
from bigtrain.objective.parts import withheld_parts
from bigtrain.objective.randomness import U64, below, choices, further, numbers_at
from bigtrain.objective.rows import I32, I64, Bools, PreparedRows, TokenRows
from bigtrain.objective.segments import joined
from bigtrain.objective.subsets import ragged

_CHOICE, _FORM, _CUTS = range(3)
"""Sites: whether a part is transformed, which form it has, and where it is cut."""
LEAST_TEXT = 8
"""Shorter texts stay as they are, in tokens."""


@dataclass(frozen=True)
class FillInTheMiddle:
    """Puts the middle of some documents after their end; a label is the next token."""

    changes_inputs: ClassVar[bool] = True
    reads_next_ids: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    prefix_id: int
    suffix_id: int
    middle_id: int
    end_id: int
    """Ends the middle."""
    end_of_text_id: int
    """Ends documents in the data, and is taken off before."""
    begin_ids: Sequence[int]
    """What documents begin with; it stays in front."""
    rate: float
    """Probability that a part of a document is transformed."""
    spm_rate: float
    """Share of the transformed parts whose suffix comes first."""

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """See `Objective.prepare`."""
        ids, length = rows.input_ids.reshape(-1), rows.input_ids.shape[1]
        first, size = rows.boundaries[:-1], np.diff(rows.boundaries)
        row, place = np.divmod(first, length)
        begin, ended = self._begins(rows, first), ids[first + size - 1] == self.end_of_text_id
        text = size - begin - ended - (4 - ended)  # of the three sentinels and the end, the document's own end is one
        chosen = numbers_at(keys, _CHOICE, row, place) < below(self.rate)
        chosen &= (text >= LEAST_TEXT) & (place < rows.input_tokens[row]) & ~withheld_parts(rows)
        inputs = ids.copy()
        labels: I32 = rows.next_ids.reshape(-1).copy()
        if chosen.any():
            own = np.flatnonzero(chosen)
            start, count = first[own] + begin[own], text[own]
            drawn = numbers_at(keys, _CUTS, row[own], place[own])
            cuts = np.sort([choices(drawn, count + 1), choices(further(drawn), count + 1)], axis=0)
            suffix_first = numbers_at(keys, _FORM, row[own], place[own]) < below(self.spm_rate)
            moved = joined(ids, *self._segments(start, count, cuts, suffix_first))
            places = ragged(start, first[own] + size[own] - start)
            inputs[places] = moved
            _label(labels, inputs, first[own], size[own])
        counts = np.count_nonzero(labels.reshape(-1, length) != IGNORE_INDEX, axis=1)
        return PreparedRows(
            input_ids=inputs.reshape(-1, length),
            labels=labels.reshape(-1, length),
            positions=rows.positions,
            boundaries=rows.boundaries,
            label_tokens=counts,
            input_tokens=rows.input_tokens,
        )

    def _begins(self, rows: TokenRows, first: I64) -> I64:
        """[D], how many tokens of each part are those that documents begin with."""
        ids = rows.input_ids.reshape(-1)
        size = len(self.begin_ids)
        if size == 0:
            return np.zeros(len(first), np.int64)
        places = np.minimum(first[:, None] + np.arange(size), ids.size - 1)
        return (ids[places] == np.array(self.begin_ids)).all(axis=1) * np.int64(size)

    def _segments(self, start: I64, text: I64, cuts: I64, suffix_first: Bools) -> tuple[I64, I64]:
        """The starts and lengths of the segments of `joined`, for texts [n] with two cuts [2, n] each."""
        one = np.ones_like(start)
        prefix = (start, cuts[0])
        middle = (start + cuts[0], cuts[1] - cuts[0])
        suffix = (start + cuts[1], text - cuts[1])
        none = (start, 0 * one)

        def token(number: int) -> tuple[I64, I64]:
            return (-1 - number) * one, one

        psm = [token(self.prefix_id), prefix, token(self.suffix_id), suffix, token(self.middle_id), none, middle]
        spm = [token(self.prefix_id), none, token(self.suffix_id), suffix, token(self.middle_id), prefix, middle]
        forms = np.where(suffix_first, np.array(spm).transpose(1, 0, 2), np.array(psm).transpose(1, 0, 2))
        starts, lengths = np.concatenate((forms, np.array([token(self.end_id)]).transpose(1, 0, 2)), axis=1)
        return starts.T.reshape(-1), lengths.T.reshape(-1)


def _label(labels: I32, inputs: I32, first: I64, size: I64) -> None:
    """Let each token of parts predict the next one of its part, and the last one nothing."""
    places = ragged(first, size - 1)
    labels[places] = inputs[places + 1]
    labels[first + size - 1] = IGNORE_INDEX

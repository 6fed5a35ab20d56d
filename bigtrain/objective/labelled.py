"""What is learned from documents that come with labels, for a model that learned from text before.

                     labels of tokens in the data              what the model predicts
    classification   the class, at each token                  the class, at one token of a document
    token_classification  the tag, at the first token of a word  the tag, there
    extractive_qa    0 question, 1 context, 2 answer           where the answer starts and ends in the document
    chat             1 at what the assistant says, else 0      the next token, where that is the assistant's

The inputs are the tokens as they are. A separator stands between the two texts of a document, where it has two: tokens
after the first one are of the second type for models that know types (Devlin et al., 2019, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from bigtrain.base import IGNORE_INDEX
from bigtrain.objective.parts import DocumentParts, shifted, sums
from bigtrain.objective.randomness import U64
from bigtrain.objective.rows import I32, I64, EncoderRows, PreparedRows, TokenRows

QUESTION, CONTEXT, ANSWER = 0, 1, 2
"""Labels of the tokens of questions with their contexts."""
TRAINED_ON = 1
"""The label of tokens of a conversation that the assistant says."""
START, END = 1, 2
"""Labels of places for `task_head: question_answering`; their sum where an answer is one token."""


@dataclass(frozen=True)
class DocumentInputs:
    """How the tokens of documents are given to a model of each kind."""

    end_of_text_id: int
    separator_id: int | None = None
    """What stands between two texts, for models that know types of tokens. None: all tokens are of one type."""
    start_id: int | None = None
    """What a decoder that attends to an encoder starts a document with. None: the model has no encoder beside it."""

    def prepared(self, rows: TokenRows, labels: I32) -> PreparedRows:
        """Rows as they are, with labels [R, T]. A decoder beside an encoder reads each token one place later."""
        ids, others = rows.input_ids, {}
        encoder = None
        if self.separator_id is not None:
            others["token_type_ids"] = self._types(rows, self.separator_id)
        if self.start_id is not None:
            encoder = EncoderRows(rows.input_ids, rows.positions, rows.boundaries)
            ids = shifted(ids.reshape(-1), np.diff(rows.boundaries), self.start_id).reshape(ids.shape)
        return PreparedRows(
            input_ids=ids,
            labels=labels,
            positions=rows.positions,
            boundaries=rows.boundaries,
            label_tokens=np.count_nonzero(labels != IGNORE_INDEX, axis=1),
            input_tokens=rows.input_tokens,
            others=others,
            encoder=encoder,
        )

    def parts(self, rows: TokenRows) -> DocumentParts:
        """The documents that are trained on, whole ones alone."""
        parts = DocumentParts.of(rows, self.end_of_text_id)
        return parts[(parts.ended > 0) & ~parts.withheld]

    @staticmethod
    def _types(rows: TokenRows, separator_id: int) -> I32:
        """[R, T]: 1 after the first separator of a document, else 0."""
        ids = rows.input_ids.reshape(-1)
        before = np.concatenate(([0], np.cumsum(ids == separator_id)))[:-1]  # of each token, in all rows
        sizes = np.diff(rows.boundaries)
        types = before > np.repeat(before[rows.boundaries[:-1]], sizes)
        return types.astype(np.int32).reshape(rows.input_ids.shape)


@dataclass(frozen=True)
class Classification:
    """The class of a document, at its first token or its last one."""

    changes_inputs: ClassVar[bool] = True
    causal: ClassVar[bool] = False
    reads_next_ids: ClassVar[bool] = False

    inputs: DocumentInputs
    at_end: bool
    """Whether the last token has the class: the one that sees all others in a decoder."""

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """See `Objective.prepare`. There is nothing random in it."""
        parts = self.inputs.parts(rows)
        places = parts.first + parts.text if self.at_end else parts.first
        return self.inputs.prepared(rows, _labels_at(rows, places, _labels_of(rows)[places]))


@dataclass(frozen=True)
class TokenClassification:
    """The tag of each word, at its first token."""

    changes_inputs: ClassVar[bool] = True
    causal: ClassVar[bool] = False
    reads_next_ids: ClassVar[bool] = False

    inputs: DocumentInputs

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """See `Objective.prepare`. There is nothing random in it."""
        assert rows.labels is not None  # the settings and the data say so
        labels = rows.labels.copy()
        for row, first, end in rows.withheld:
            labels[row, first:end] = IGNORE_INDEX
        return self.inputs.prepared(rows, labels)


@dataclass(frozen=True)
class ExtractiveQa:
    """Where the answer to a question starts and ends in its context; at the first token where there is none.

    Devlin et al. (2019), sections 4.2 and 4.3.
    """

    changes_inputs: ClassVar[bool] = True
    causal: ClassVar[bool] = False
    reads_next_ids: ClassVar[bool] = False

    inputs: DocumentInputs

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """See `Objective.prepare`. There is nothing random in it."""
        parts = self.inputs.parts(rows)
        answered = np.flatnonzero(_labels_of(rows) == ANSWER)
        start, after = (answered.searchsorted(bound) for bound in (parts.first, parts.first + parts.text))
        found = np.flatnonzero(after > start)
        first, last = parts.first.copy(), parts.first.copy()
        first[found], last[found] = answered[start[found]], answered[after[found] - 1]
        labels = np.zeros(rows.input_ids.size, np.int32)
        np.add.at(labels, first, START)
        np.add.at(labels, last, END)
        labels[labels == 0] = IGNORE_INDEX
        prepared = self.inputs.prepared(rows, labels.reshape(rows.input_ids.shape))
        return PreparedRows(
            **{**vars(prepared), "label_tokens": sums(np.ones(len(parts), np.int64), parts.row, len(rows.input_ids))}
        )


@dataclass(frozen=True)
class Chat:
    """The next token, where the assistant says it."""

    changes_inputs: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    reads_next_ids: ClassVar[bool] = True

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """See `Objective.prepare`. Inputs are those of `rows`; there is nothing random in it."""
        said = np.zeros(rows.input_ids.size, np.bool_)
        said[:-1] = _labels_of(rows)[1:] == TRAINED_ON  # what a row does not hold is not said in it
        labels = np.where(said.reshape(rows.input_ids.shape), rows.next_ids, np.int32(IGNORE_INDEX))
        labels[:, -1] = IGNORE_INDEX
        return PreparedRows(
            rows.input_ids,
            labels,
            rows.positions,
            rows.boundaries,
            np.count_nonzero(labels != IGNORE_INDEX, axis=1),
            rows.input_tokens,
        )


def _labels_of(rows: TokenRows) -> npt.NDArray[np.int32]:
    assert rows.labels is not None  # the settings and the data say so
    return rows.labels.reshape(-1)


def _labels_at(rows: TokenRows, places: I64, values: I32) -> I32:
    """[R, T]: values at places of the flattened tokens, else IGNORE_INDEX."""
    labels = np.full(rows.input_ids.size, IGNORE_INDEX, np.int32)
    labels[places] = values
    return labels.reshape(rows.input_ids.shape)

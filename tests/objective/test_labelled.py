"""Promises of the objectives whose labels come with the data: where labels stand, and what a model reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.objective import TokenRows
from bigtrain.objective.labelled import (
    ANSWER,
    CONTEXT,
    END,
    QUESTION,
    START,
    Chat,
    Classification,
    DocumentInputs,
    ExtractiveQa,
    TokenClassification,
)
from tests.objective.rows import FIRST, VOCABULARY, documents, keys_of, row, rows_of, some_rows
from tests.objective.rows import START as DECODER_START

LENGTH, SEPARATOR = 40, 1
INPUTS = DocumentInputs(end_of_text_id=0)
OBJECTIVES = {
    "first token": Classification(INPUTS, at_end=False),
    "last token": Classification(INPUTS, at_end=True),
    "encoder-decoder": Classification(replace(INPUTS, start_id=DECODER_START), at_end=True),
    "types": Classification(replace(INPUTS, separator_id=SEPARATOR), at_end=False),
    "tags": TokenClassification(INPUTS),
    "answers": ExtractiveQa(INPUTS),
    "chat": Chat(),
}


def labelled_rows(seed: int, count: int, length: int = LENGTH) -> TokenRows:
    """Rows of whole documents, whose tokens have a label of 0, 1 or 2, or none."""
    rows = rows_of(some_rows(seed, count, length), length)
    random = np.random.default_rng(seed)
    labels = random.choice(np.array([IGNORE_INDEX, 0, 1, 2], np.int32), rows.input_ids.shape)
    labels[np.arange(length) >= rows.input_tokens[:, None]] = IGNORE_INDEX
    return replace(rows, labels=labels)


def alone(rows: TokenRows, number: int) -> TokenRows:
    return rows.chosen(np.array([number]))


@pytest.fixture(params=OBJECTIVES)
def objective(request: pytest.FixtureRequest):
    return OBJECTIVES[request.param]


@pytest.mark.parametrize("name", OBJECTIVES)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 5))
def test_a_row_becomes_the_same_alone_and_among_others(name: str, seed: int, count: int) -> None:
    rows, keys = labelled_rows(seed, count), keys_of(seed, count)
    together = OBJECTIVES[name].prepare(rows, keys)
    for number in range(count):
        found = OBJECTIVES[name].prepare(alone(rows, number), keys[number : number + 1])
        assert row(found, 0) == row(together, number)


def test_padding_and_withheld_documents_have_no_labels(objective) -> None:
    rows = replace(rows_of([[[*[5] * 9, 0], [*[6] * 9, 0]]] * 3, LENGTH), labels=np.ones((3, LENGTH), np.int32))
    assert rows.labels is not None
    rows.labels[:, 20:] = IGNORE_INDEX
    for number in range(3):
        rows.withhold(number, 10, 20)
    found = objective.prepare(rows, keys_of(1, 3))
    for own in documents(found.labels, found.boundaries):
        assert set(own[0]) != {IGNORE_INDEX}
        assert set(own[1]) == set(own[2]) == {IGNORE_INDEX}


@given(seed=st.integers(0, 2**32), count=st.integers(1, 5))
def test_a_class_stands_at_one_token_of_each_document(seed: int, count: int) -> None:
    rows = labelled_rows(seed, count)
    for name, place in (("first token", 0), ("last token", -1)):
        found = OBJECTIVES[name].prepare(rows, keys_of(seed, count))
        assert np.array_equal(found.input_ids, rows.input_ids)
        wanted = documents(rows.labels, rows.boundaries)
        for own, given_labels, tokens in zip(
            documents(found.labels, found.boundaries), wanted, rows.input_tokens, strict=True
        ):
            at = 0
            for labels, of_data in zip(own, given_labels, strict=True):
                expected = [IGNORE_INDEX] * len(labels)
                if at < tokens:
                    expected[place] = of_data[place]
                assert labels == expected
                at += len(labels)


def test_a_decoder_beside_an_encoder_reads_a_token_later() -> None:
    rows = replace(rows_of([[[5, 6, 7, 0], [8, 0]]], 8), labels=np.array([[2, 2, 2, 2, 1, 1, -100, -100]], np.int32))
    found = OBJECTIVES["encoder-decoder"].prepare(rows, keys_of(1, 1))
    assert found.encoder is not None
    assert found.encoder.input_ids.tolist() == [[5, 6, 7, 0, 8, 0, 0, 0]]
    assert found.input_ids.tolist() == [[DECODER_START, 5, 6, 7, DECODER_START, 8, DECODER_START, 0]]
    assert found.labels.tolist() == [[-100, -100, -100, 2, -100, 1, -100, -100]]


def test_tokens_after_the_separator_are_of_the_second_type() -> None:
    texts = [[[5, 6, SEPARATOR, 7, SEPARATOR, 8, 0], [9, 0]], [[5, 0], [SEPARATOR, 6, 0]]]
    rows = replace(rows_of(texts, 10), labels=np.zeros((2, 10), np.int32))
    found = OBJECTIVES["types"].prepare(rows, keys_of(1, 2))
    assert found.others["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0, 0, 0]]


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=3
    ),
    st.integers(0, 2**32),
)
def test_an_answer_is_where_its_labels_are_or_at_the_first_token(shapes, seed: int) -> None:
    """Of each document: tokens of question, context before the answer, answer, context after it."""
    random = np.random.default_rng(seed)
    parts, labels, wanted = [], [], []
    for question, before, answer, after in shapes:
        own = [QUESTION] * question + [CONTEXT] * before + [ANSWER] * answer + [CONTEXT] * after + [IGNORE_INDEX]
        parts.append([*random.integers(FIRST, VOCABULARY, len(own) - 1).tolist(), 0])
        labels += own
        expected = [IGNORE_INDEX] * len(own)
        first = question + before
        places = (first, first + answer - 1) if answer else (0, 0)
        for place in set(places):
            expected[place] = START * (place == places[0]) + END * (place == places[1])
        wanted.append(expected)
    rows = replace(rows_of([parts], 64), labels=np.array([labels + [IGNORE_INDEX] * (64 - len(labels))], np.int32))
    found = OBJECTIVES["answers"].prepare(rows, keys_of(1, 1))
    assert documents(found.labels, found.boundaries)[0][: len(wanted)] == wanted
    assert found.label_tokens.tolist() == [len(shapes)]


@given(seed=st.integers(0, 2**32), count=st.integers(1, 5))
def test_the_next_token_is_a_label_where_the_assistant_says_it(seed: int, count: int) -> None:
    rows = labelled_rows(seed, count)
    found = OBJECTIVES["chat"].prepare(rows, keys_of(seed, count))
    assert rows.labels is not None
    for number in range(count):
        for place in range(LENGTH):
            said = place + 1 < LENGTH and rows.labels[number, place + 1] == 1
            expected = rows.next_ids[number, place] if said else IGNORE_INDEX
            assert found.labels[number, place] == expected

"""Promises of every objective: what becomes of a row follows from the row and its address alone."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base import BigtrainError
from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.config import ObjectiveSettings
from bigtrain.objective import Objective, make_objective, row_lengths
from tests.objective.rows import documents, keys_of, row, rows_of, shapes, some_rows, vocabulary

OBJECTIVES = {
    "causal": ObjectiveSettings(),
    "masked": ObjectiveSettings(name="masked"),
    "whole words": ObjectiveSettings(name="masked", whole_words=True, mask_rate=0.3),
    "fill in the middle": ObjectiveSettings(name="fill_in_the_middle"),
    "always in the middle": ObjectiveSettings(name="fill_in_the_middle", fim_rate=1.0, fim_spm_rate=1.0),
    "denoising": ObjectiveSettings(name="denoising"),
    "every noise": ObjectiveSettings(
        name="denoising",
        infilling_rate=0.2,
        sentence_permutation_rate=0.5,
        token_masking_rate=0.2,
        token_deletion_rate=0.2,
        rotation_rate=0.5,
    ),
    "permutation": ObjectiveSettings(name="permutation"),
    "dense permutation": ObjectiveSettings(name="permutation", partial_prediction=2, max_span_length=3),
    "prefix": ObjectiveSettings(name="prefix"),
    "long prefixes": ObjectiveSettings(name="prefix", prefix_min_share=0.75, prefix_max_share=0.75),
    "span corruption": ObjectiveSettings(name="span_corruption"),
    "long spans": ObjectiveSettings(name="span_corruption", noise_density=0.5, mean_span_length=8.0),
    "nothing but masks": ObjectiveSettings(name="masked", mask_token_share=1.0, random_token_share=0.0),
}


@pytest.fixture(params=OBJECTIVES)
def objective(request: pytest.FixtureRequest) -> Objective:
    return make_objective(OBJECTIVES[request.param], vocabulary())


@settings(max_examples=40, deadline=None)
@given(shapes)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_row_becomes_the_same_alone_and_among_others(name: str, shape: tuple[int, int, int]) -> None:
    objective = make_objective(OBJECTIVES[name], vocabulary())
    seed, count, length = shape
    documents, keys = some_rows(seed, count, length), keys_of(seed, count)
    together = objective.prepare(rows_of(documents, length), keys)
    for number in range(count):
        alone = objective.prepare(rows_of(documents[number : number + 1], length), keys[number : number + 1])
        assert row(alone, 0) == row(together, number)


@settings(max_examples=40, deadline=None)
@given(shapes, st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_in_another_order_become_the_same(name: str, shape: tuple[int, int, int], random) -> None:
    objective = make_objective(OBJECTIVES[name], vocabulary())
    seed, count, length = shape
    documents, keys = some_rows(seed, count, length), keys_of(seed, count)
    order = list(range(count))
    random.shuffle(order)
    found = objective.prepare(rows_of(documents, length), keys)
    shuffled = objective.prepare(rows_of([documents[number] for number in order], length), keys[order])
    assert [row(shuffled, place) for place in range(count)] == [row(found, number) for number in order]


def test_the_rows_that_are_given_stay_as_they_are(objective: Objective) -> None:
    rows = rows_of(some_rows(3, 20, 30), 30)
    before = pickle.dumps(rows)
    objective.prepare(rows, keys_of(3, 20))
    assert pickle.dumps(rows) == before


def test_next_ids_are_read_only_where_an_objective_says_so(objective: Objective) -> None:
    rows, keys = rows_of(some_rows(3, 20, 30), 30), keys_of(3, 20)
    if not objective.reads_next_ids:
        without = replace(rows, next_ids=rows.next_ids[:, :0])
        found, wanted = objective.prepare(without, keys), objective.prepare(rows, keys)
        assert [row(found, number) for number in range(20)] == [row(wanted, number) for number in range(20)]


def test_documents_that_are_withheld_are_never_predicted(objective: Objective) -> None:
    rows = rows_of([[[5] * 20, [6] * 20]] * 50, 40)
    for number in range(50):
        rows.withhold(number, 20, 40)
    found = objective.prepare(rows, keys_of(1, 50))
    labels = documents(found.labels, found.boundaries)
    assert all(set(own[1]) == {IGNORE_INDEX} for own in labels)
    assert any(set(own[0]) != {IGNORE_INDEX} for own in labels)
    assert found.label_tokens.tolist() == (found.labels != IGNORE_INDEX).sum(axis=1).tolist()
    if objective.changes_inputs and found.encoder is None:
        assert (found.input_ids[:, 20:] == 6).all()


@pytest.mark.parametrize("length", [1, 2, 17, 64, 569])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_have_the_lengths_that_the_settings_give(name: str, length: int) -> None:
    """The dry run and the meter know them without data."""
    settings = OBJECTIVES[name]
    found = make_objective(settings, vocabulary()).prepare(rows_of(some_rows(1, 3, length), length), keys_of(1, 3))
    encoder = None if found.encoder is None else found.encoder.input_ids.shape[1]
    assert row_lengths(settings, length) == (found.input_ids.shape[1], encoder)


def test_counts_are_those_of_the_labels(objective: Objective) -> None:
    rows = rows_of(some_rows(4, 60, 25), 25)
    found = objective.prepare(rows, keys_of(4, 60))
    assert found.label_tokens.tolist() == (found.labels != IGNORE_INDEX).sum(axis=1).tolist()
    assert found.input_tokens.tolist() == rows.input_tokens.tolist()


def test_a_token_that_the_tokenizer_lacks_is_named_with_the_remedy() -> None:
    with pytest.raises(BigtrainError) as error:
        make_objective(ObjectiveSettings(name="masked", mask_token="<mask>"), vocabulary())
    assert "<mask>" in str(error.value) and "[MASK]" in str(error.value)
    assert "additional_special_tokens" in str(error.value)


def test_padding_has_no_labels(objective: Objective) -> None:
    rows = rows_of([[[7] * 10]] * 100, 30)
    found = objective.prepare(rows, keys_of(2, 100))
    labels = documents(found.labels, found.boundaries)
    assert all(len(own) == 2 and set(own[1]) == {IGNORE_INDEX} for own in labels)


def test_masks_differ_from_key_to_key() -> None:
    objective = make_objective(OBJECTIVES["masked"], vocabulary())
    found = objective.prepare(rows_of([[[9] * 64]] * 200, 64), keys_of(8, 200))
    assert len({bytes(labels) for labels in found.labels}) == 200
    assert np.array_equal(found.labels[found.labels != IGNORE_INDEX], np.full(found.label_tokens.sum(), 9))

"""Promises of the permutation objective: what is predicted, in which order, and how often."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.config import ObjectiveSettings
from bigtrain.objective import PreparedRows, TokenRows, make_objective
from tests.objective.rows import FIRST, VOCABULARY, documents, keys_of, rows_of, shapes, some_rows, vocabulary

CERTAIN = 1e-6
ROWS, LENGTH = 3000, 240


def prepared(rows: TokenRows, **choices: int) -> PreparedRows:
    objective = make_objective(ObjectiveSettings(name="permutation", **choices), vocabulary())
    return objective.prepare(rows, keys_of(12, len(rows.input_ids)))


def long_rows(count: int = ROWS, length: int = LENGTH) -> TokenRows:
    random = np.random.default_rng(11)
    return rows_of([[random.integers(FIRST, VOCABULARY, length).tolist()] for _ in range(count)], length)


@settings(max_examples=80, deadline=None)
@given(shapes, st.integers(2, 4), st.integers(1, 6))
def test_each_part_has_an_order_of_what_it_predicts(shape: tuple[int, int, int], every: int, most: int) -> None:
    """Labels are the tokens at their own places; they have the ranks 1 to their number in a part, and all others the
    rank 0, of which there is at least one: no token is predicted from nothing."""
    seed, count, length = shape
    rows = rows_of(some_rows(seed, count, length), length)
    found = prepared(rows, partial_prediction=every, max_span_length=most)
    assert found.input_ids is rows.input_ids
    hidden = found.labels != IGNORE_INDEX
    assert np.array_equal(found.labels[hidden], rows.input_ids[hidden])
    assert (rows.input_ids[hidden] >= FIRST).all()
    split = [documents(x, rows.boundaries) for x in (found.others["order_ranks"], found.labels)]
    for parts in zip(*split, strict=True):
        for ranks, labels in zip(*parts, strict=True):
            own = [rank for rank, label in zip(ranks, labels, strict=True) if label != IGNORE_INDEX]
            assert sorted(own) == list(range(1, len(own) + 1)) and len(own) < len(ranks)
            assert sum(ranks) == sum(own)


@pytest.mark.parametrize(("every", "most"), [(6, 5), (7, 1), (3, 4)])
def test_one_token_in_k_is_predicted_with_spans_of_all_lengths(every: int, most: int) -> None:
    """The spread of a row's number is small, so the mean over rows is near length / K; at a document's ends less."""
    hidden = prepared(long_rows(), partial_prediction=every, max_span_length=most).labels != IGNORE_INDEX
    inner = hidden[:, every * most : -every * most]
    per_row = inner.mean(axis=1)
    assert abs(per_row.mean() - 1 / every) < 5 * per_row.std() / np.sqrt(ROWS) + 0.002
    ends = np.diff(np.pad(inner, ((0, 0), (1, 1))).astype(int), axis=1)
    lengths = (np.argwhere(ends == -1) - np.argwhere(ends == 1))[:, 1]
    counts = np.bincount(lengths, minlength=most + 1)
    assert (counts[1 : most + 1] > 0.5 * counts[1 : most + 1].mean()).all()
    assert counts[most + 1 :].sum() < 0.25 * counts.sum()  # two spans that touch


def test_orders_are_uniform_and_independent_of_places() -> None:
    """Of parts with three predicted tokens each of the six orders is as likely."""
    found = prepared(long_rows(20000, 18))
    three = found.labels.shape[1] and (found.label_tokens == 3)
    ranks = [tuple(own[own > 0].tolist()) for own in found.others["order_ranks"][three]]
    counts = [ranks.count(order) for order in sorted(set(ranks))]
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > CERTAIN


def test_orders_and_choices_differ_from_key_to_key() -> None:
    found = prepared(rows_of([[[9] * 64]] * 200, 64))
    assert len({bytes(labels) for labels in found.labels}) == 200
    assert abs(np.corrcoef(found.labels[1:].ravel() > 0, found.labels[:-1].ravel() > 0)[0, 1]) < 0.05


def test_a_part_of_which_all_would_be_predicted_keeps_one_token() -> None:
    rows = rows_of([[[7], [8, 9], [7] * 3, [6] * 4]] * 400, 10)
    found = prepared(rows, partial_prediction=2, max_span_length=5)
    labels = [own for row in documents(found.labels, found.boundaries) for own in row]
    assert all(IGNORE_INDEX in own for own in labels)
    assert any(own.count(IGNORE_INDEX) == 1 and len(own) == 4 for own in labels)

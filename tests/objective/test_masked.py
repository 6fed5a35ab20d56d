"""Promises of the masked objective: its rates, and what stands in the place of a hidden token."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy import stats

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.config import ObjectiveSettings
from bigtrain.objective import Masked, PreparedRows, TokenRows, make_objective
from tests.objective.rows import FIRST, VOCABULARY, keys_of, rows_of, vocabulary

LENGTH, ROWS = 128, 2000
CERTAIN = 1e-6
"""A right implementation fails once in a million seeds; the seeds are fixed."""


def prepared(**settings: object) -> tuple[TokenRows, PreparedRows]:
    random = np.random.default_rng(11)
    documents = [[random.integers(FIRST, VOCABULARY, LENGTH).tolist()] for _ in range(ROWS)]
    rows = rows_of(documents, LENGTH)
    objective = make_objective(ObjectiveSettings(name="masked", **settings), vocabulary())
    assert isinstance(objective, Masked)
    return rows, objective.prepare(rows, keys_of(12, ROWS))


def binomial(successes: int, trials: int, probability: float) -> float:
    return float(stats.binomtest(successes, trials, probability).pvalue)


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.01])
def test_masking_rates_are_within_exact_binomial_bounds(rate: float) -> None:
    rows, found = prepared(mask_rate=rate)
    hidden = found.labels != IGNORE_INDEX
    assert binomial(int(hidden.sum()), hidden.size, rate) > CERTAIN
    for place in range(LENGTH):  # nor does the rate depend on the place
        assert binomial(int(hidden[:, place].sum()), ROWS, rate) > CERTAIN / LENGTH
    assert (rows.input_ids[hidden] == found.labels[hidden]).all()
    assert (rows.input_ids[~hidden] == found.input_ids[~hidden]).all()


def test_of_the_hidden_tokens_the_shares_are_masked_random_and_kept() -> None:
    _, found = prepared(mask_token_share=0.8, random_token_share=0.1)
    hidden = found.labels != IGNORE_INDEX
    inputs, labels = found.input_ids[hidden], found.labels[hidden]
    masked, kept = inputs == 1, inputs == labels
    ordinary = VOCABULARY - FIRST
    assert binomial(int(masked.sum()), len(inputs), 0.8) > CERTAIN
    assert binomial(int(kept.sum()), len(inputs), 0.1 + 0.1 / ordinary) > CERTAIN
    random = inputs[~masked & ~kept]
    assert set(random.tolist()) == set(range(FIRST, VOCABULARY))
    assert stats.chisquare(np.bincount(random, minlength=VOCABULARY)[FIRST:]).pvalue > CERTAIN


def test_special_tokens_are_neither_hidden_nor_put_in_place_of_others() -> None:
    rows = rows_of([[[5, 0, 6, 2, 7, 4] * 10]] * 500, 60)
    objective = make_objective(ObjectiveSettings(name="masked", mask_rate=0.5, mask_token_share=0.0), vocabulary())
    found = objective.prepare(rows, keys_of(3, 500))
    assert (found.labels[:, 1::2] == IGNORE_INDEX).all()
    assert (found.input_ids[:, ::2] >= FIRST).all()


def test_whole_words_are_hidden_or_seen_as_a_whole() -> None:
    word = [6, 7, 8]  # 6 begins a word
    rows = rows_of([[word * 20, [7, 8] + word * 10]] * 500, 92)
    objective = make_objective(ObjectiveSettings(name="masked", whole_words=True), vocabulary())
    hidden = objective.prepare(rows, keys_of(4, 500)).labels != IGNORE_INDEX
    words = np.concatenate([hidden[:, :60].reshape(-1, 3), hidden[:, 62:].reshape(-1, 3)])
    assert (words.all(axis=1) | ~words.any(axis=1)).all()
    assert (hidden[:, 60] == hidden[:, 61]).all()  # what a document begins with is a word of its own
    assert binomial(int(words[:, 0].sum()), len(words), 0.15) > CERTAIN


def test_neighbours_are_hidden_independently() -> None:
    _, found = prepared(mask_rate=0.3)
    hidden = (found.labels != IGNORE_INDEX).astype(float)
    for distance in (1, 2, 3, 64):
        pairs = np.corrcoef(hidden[:, distance:].ravel(), hidden[:, :-distance].ravel())[0, 1]
        assert abs(pairs) < 5 / sqrt(hidden[:, distance:].size)
    assert abs(np.corrcoef(hidden[1:].ravel(), hidden[:-1].ravel())[0, 1]) < 5 / sqrt(hidden[1:].size)

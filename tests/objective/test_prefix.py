"""Promises of the prefix objective: lengths of prefixes, what is labelled, and what each token sees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from pydantic import ValidationError
from scipy import stats

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.config import ObjectiveSettings
from bigtrain.objective import make_objective
from tests.objective.rows import documents, keys_of, rows_of, shapes, some_rows, vocabulary

CERTAIN = 1e-6


def lengths_of(size: int, count: int, **shares: float) -> np.ndarray:
    """The lengths of prefixes of `count` documents of so many tokens, four to a row of them."""
    rows = rows_of([[[7] * size] * 4 for _ in range(count // 4)], 4 * size)
    found = make_objective(ObjectiveSettings(name="prefix", **shares), vocabulary()).prepare(
        rows, keys_of(5, count // 4)
    )
    ranks = documents(found.others["order_ranks"], found.boundaries)
    return np.array([own[0] + 1 for row in ranks for own in row])


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_labels_and_sight_follow_from_one_prefix_a_part(shape: tuple[int, int, int]) -> None:
    """In each part a prefix sees itself from both sides and has labels at its last token alone; what follows it sees
    all before it, and has the labels of the causal objective."""
    seed, count, length = shape
    rows = rows_of(some_rows(seed, count, length), length)
    found = make_objective(ObjectiveSettings(name="prefix"), vocabulary()).prepare(rows, keys_of(seed, count))
    assert np.array_equal(found.input_ids, rows.input_ids)
    split = [documents(x, rows.boundaries) for x in (found.others["order_ranks"], found.labels, rows.next_ids)]
    for parts in zip(*split, strict=True):
        for ranks, labels, following in zip(*parts, strict=True):
            prefix, size = ranks[0] + 1, len(ranks)
            assert 1 <= prefix <= max(size - 1, 1)
            assert ranks == [max(place, prefix - 1) for place in range(size)]
            assert labels == [IGNORE_INDEX] * (prefix - 1) + following[prefix - 1 :]


def test_lengths_of_prefixes_are_uniform() -> None:
    """From one token to all but one, and independent of their neighbours."""
    found = lengths_of(size=11, count=8000)
    assert set(found.tolist()) == set(range(1, 11))
    assert stats.chisquare(np.bincount(found)[1:]).pvalue > CERTAIN
    assert abs(np.corrcoef(found[::2], found[1::2])[0, 1]) < 5 / np.sqrt(len(found) / 2)


@pytest.mark.parametrize(
    ("least", "most", "size", "wanted"),
    [
        (0.25, 0.5, 16, range(4, 9)),
        (0.75, 0.75, 16, {12}),
        (0.75, 0.75, 2, {1}),
        (0.9, 0.95, 5, {4}),
        (0.0, 0.1, 5, {1}),
    ],
)
def test_prefixes_have_the_shares_that_the_settings_give(
    least: float, most: float, size: int, wanted: set[int]
) -> None:
    found = lengths_of(size, 2000, prefix_min_share=least, prefix_max_share=most)
    assert set(found.tolist()) == set(wanted)


def test_shares_that_cross_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"prefix_min_share 0\.8 is more than prefix_max_share 0\.5"):
        ObjectiveSettings(name="prefix", prefix_min_share=0.8, prefix_max_share=0.5)

"""Promises of the prefix objective: what a token sees, and which tokens are predicted."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from scipy import stats

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.config import ObjectiveSettings
from bigtrain.objective import make_objective
from tests.objective.rows import documents, keys_of, rows_of, shapes, some_rows

PREFIX = make_objective(ObjectiveSettings(name="prefix"), None)


@settings(max_examples=100, deadline=None)
@given(shapes)
def test_a_prefix_sees_all_of_itself_and_predicts_what_follows(shape: tuple[int, int, int]) -> None:
    seed, count, length = shape
    rows = rows_of(some_rows(seed, count, length), length)
    found = PREFIX.prepare(rows, keys_of(seed, count))
    assert (found.input_ids == rows.input_ids).all()
    own = (documents(array, rows.boundaries) for array in (found.others["sees_until"], found.labels, rows.next_ids))
    for sees, labels, following in zip(*own, strict=True):
        start = 0
        for until, label, after in zip(sees, labels, following, strict=True):
            size, prefix = len(until), until[0] - start + 1
            assert 1 <= prefix <= max(size - 1, 1)
            assert until == [max(place, start + prefix - 1) for place in range(start, start + size)]
            assert label == [IGNORE_INDEX] * (prefix - 1) + after[prefix - 1 :]
            start += size


def test_prefix_lengths_are_uniform_over_the_document() -> None:
    rows = rows_of([[[7] * 21]] * 4000, 21)
    prefix = PREFIX.prepare(rows, keys_of(2, 4000)).others["sees_until"][:, 0]
    assert stats.chisquare(np.bincount(prefix, minlength=20)).pvalue > 1e-6

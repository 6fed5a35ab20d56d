"""Promises of uniform subsets: each is as likely as any other, and they follow from the draws by a simple rule."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bigtrain.objective.randomness import choices, numbers_at
from bigtrain.objective.subsets import DrawnParts, draws_of
from tests.objective.rows import keys_of

CERTAIN = 1e-6


def one_subset(parts: DrawnParts, number: int, count: int) -> list[int]:
    """The subset of one part by the rule, draw by draw."""
    size = int(parts.size[number])
    wanted = size - count if 2 * count > size else count
    draws = int(draws_of(parts.size[number : number + 1], np.array([wanted]))[0])
    found: list[int] = []
    draw = 0
    while len(found) < wanted:
        place = parts.place[number : number + 1] + draw % draws
        word = numbers_at(parts.keys, parts.site + draw // draws, parts.row[number : number + 1], place)
        value = int(choices(word, size)[0])
        if value not in found:
            found.append(value)
        draw += 1
    return sorted(set(range(size)) - set(found) if 2 * count > size else found)


def some_parts(seed: int, sizes: list[int], site: int = 3) -> DrawnParts:
    """Parts in rows of 40 of them each."""
    rows = 1 + len(sizes) // 40
    row = np.arange(len(sizes)) // 40
    place = np.concatenate([np.cumsum([0, *sizes[40 * one : 40 * one + 40]])[:-1] for one in range(rows)])
    return DrawnParts(keys_of(seed, rows), site, row, place.astype(np.int64), np.array(sizes, np.int64))


sizes_and_counts = st.lists(
    st.integers(0, 60).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size))), min_size=1, max_size=90
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), sizes_and_counts)
def test_subsets_are_the_first_different_draws(seed: int, given: list[tuple[int, int]]) -> None:
    parts = some_parts(seed, [size for size, _ in given])
    found = parts.subsets(np.array([count for _, count in given])).tolist()
    assert found == [value for number, (_, count) in enumerate(given) for value in one_subset(parts, number, count)]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), sizes_and_counts)
def test_segments_are_not_empty_and_have_the_part_together(seed: int, given: list[tuple[int, int]]) -> None:
    parts = some_parts(seed, [size + 1 for size, _ in given])
    counts = np.array([count + 1 for _, count in given])
    lengths = np.split(parts.segments(counts), np.cumsum(counts)[:-1])
    assert [int(own.sum()) for own in lengths] == parts.size.tolist()
    assert all((own > 0).all() for own in lengths)


@pytest.mark.parametrize(("size", "count"), [(6, 1), (6, 2), (6, 3), (6, 4), (7, 5), (9, 4)])
def test_every_subset_is_as_likely_as_any_other(size: int, count: int) -> None:
    tries = 200 * comb(size, count)
    parts = some_parts(7, [size] * tries)
    found = parts.subsets(np.full(tries, count)).reshape(tries, count)
    numbers = {subset: number for number, subset in enumerate(combinations(range(size), count))}
    seen = np.bincount([numbers[tuple(own)] for own in found.tolist()], minlength=len(numbers))
    assert stats.chisquare(seen).pvalue > CERTAIN

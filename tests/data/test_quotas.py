"""Promises of the mixture."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.data.order.quotas import MAX_TOTAL, Quotas, integer_weights, weights_in_proportion

weight_lists = st.lists(st.integers(1, 50), min_size=1, max_size=9)


@given(weight_lists, st.integers(1, 400))
def test_each_source_is_counted_without_gap_and_sums_are_exact(weights: list[int], samples: int) -> None:
    quotas = Quotas(weights)
    sources, within = quotas.locate(np.arange(samples, dtype=np.uint64))
    for source in range(len(weights)):
        assert within[sources == source].tolist() == list(range(int(np.sum(sources == source))))
    assert quotas.counts(samples) == np.bincount(sources, minlength=len(weights)).tolist()


@given(weight_lists, st.integers(0, 10**15))
def test_every_prefix_is_within_log2_of_the_ideal_share(weights: list[int], samples: int) -> None:
    bound = max(1, ceil(log2(len(weights))))
    for count, weight in zip(Quotas(weights).counts(samples), weights, strict=True):
        assert abs(count - Fraction(samples * weight, sum(weights))) <= bound


@given(weight_lists)
def test_a_whole_turn_gives_exactly_the_weights(weights: list[int]) -> None:
    assert Quotas(weights).counts(sum(weights)) == weights


@given(
    st.lists(st.integers(1, MAX_TOTAL // 5), min_size=2, max_size=5),
    st.lists(st.integers(0, 10**15), min_size=1, max_size=5),
)
def test_numpy_agrees_with_python_integers_however_large(weights: list[int], samples: list[int]) -> None:
    quotas = Quotas(weights)
    sources, within = quotas.locate(np.array(samples, np.uint64))
    for sample, source, number in zip(samples, sources.tolist(), within.tolist(), strict=True):
        assert quotas.counts(sample)[source] == number
        assert quotas.counts(sample + 1)[source] == number + 1


def test_typed_weights_are_exact_and_reduced() -> None:
    assert integer_weights([Fraction("0.1"), Fraction("0.2"), Fraction("0.7")]) == [1, 2, 7]
    assert integer_weights([Fraction(4), Fraction(6)]) == [2, 3]


def test_weights_that_cannot_be_exact_are_refused() -> None:
    with pytest.raises(BigtrainError, match="too many digits"):
        integer_weights([Fraction(repr(1 / 3)), Fraction("0.7")])


@given(st.lists(st.integers(1, 10**14), min_size=1, max_size=6))
def test_default_weights_follow_the_counts_and_fit(counts: list[int]) -> None:
    weights = weights_in_proportion(counts)
    assert sum(weights) <= MAX_TOTAL
    if sum(counts) < MAX_TOTAL:
        assert weights == counts
    for weight, count in zip(weights, counts, strict=True):
        assert abs(weight / sum(weights) - count / sum(counts)) < 1e-8


@given(weight_lists, st.integers(1, 400))
def test_the_inverse_gives_each_sample_back(weights: list[int], samples: int) -> None:
    quotas = Quotas(weights)
    numbers = np.arange(samples, dtype=np.uint64)
    sources, within = quotas.locate(numbers)
    for source in range(len(weights)):
        own = sources == source
        assert quotas.invert(source, within[own]).tolist() == numbers[own].tolist()


@given(
    st.lists(st.integers(1, MAX_TOTAL // 5), min_size=1, max_size=5),
    st.lists(st.integers(0, 10**15), min_size=1, max_size=5),
)
def test_the_inverse_does_not_overflow_however_large_the_weights(weights: list[int], samples: list[int]) -> None:
    quotas = Quotas(weights)
    sources, within = quotas.locate(np.array(samples, np.uint64))
    back = [quotas.invert(int(s), np.array([w]))[0] for s, w in zip(sources, within, strict=True)]
    assert [int(number) for number in back] == samples


def test_the_inverse_holds_at_the_largest_weights_there_may_be() -> None:
    for weights in ([1, MAX_TOTAL - 1], [MAX_TOTAL - 1, 1], [MAX_TOTAL // 2, MAX_TOTAL // 2]):
        quotas = Quotas(weights)
        numbers = np.array([0, 1, MAX_TOTAL - 1, MAX_TOTAL, MAX_TOTAL + 1, 2 * MAX_TOTAL // 2, 10**15], np.uint64)
        sources, within = quotas.locate(numbers)
        for source in (0, 1):
            assert quotas.invert(source, within[sources == source]).tolist() == numbers[sources == source].tolist()

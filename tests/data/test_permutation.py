"""Promises of the keyed permutation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.data.order.permutation import Permutation


def image(n: int, *key: int | str) -> np.ndarray:
    return Permutation(n, *key).many(np.arange(n, dtype=np.uint64))


def is_bijection(n: int) -> bool:
    return bool(np.array_equal(np.sort(image(n, 7, "source", 0)), np.arange(n)))


def test_it_is_a_bijection_for_every_n_up_to_2000() -> None:
    assert [n for n in range(1, 2001) if not is_bijection(n)] == []


@pytest.mark.parametrize("k", range(1, 21))
def test_it_is_a_bijection_around_powers_of_two(k: int) -> None:
    for n in (2**k - 1, 2**k, 2**k + 1):  # k even: 2^(2j) + 1, where other loaders' networks lose samples
        assert is_bijection(n)


@given(st.integers(1, 2**61), st.integers(0, 2**64), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_one_point_and_many_points_agree(n: int, seed: int, epoch: int, random: object) -> None:
    shuffle = Permutation(n, seed, "source", epoch)
    points = [random.randrange(n) for _ in range(8)] + [0, n - 1]
    many = shuffle.many(np.array(points, np.uint64)).tolist()
    assert many == [shuffle(point) for point in points]
    assert all(0 <= point < n for point in many)


@pytest.mark.parametrize("n", [2**31 - 1, 2**31 + 1, 2**32 + 1, 10**13, 10**13 + 1, 2**50 + 1])
def test_nothing_overflows_at_large_n(n: int) -> None:
    points = np.concatenate((np.arange(50_000), n - 1 - np.arange(50_000))).astype(np.uint64)
    there = Permutation(n, 1, "source", 0).many(points)
    assert len(np.unique(there)) == len(points)
    assert int(there.max()) < n
    assert abs(float(there.mean()) / n - 0.5) < 0.01


def test_epochs_sources_and_seeds_each_have_an_order_of_their_own() -> None:
    keys = [(seed, name, epoch) for seed in range(4) for name in ("a", "b", "a0") for epoch in range(4)]
    orders = {image(1000, *key).tobytes() for key in keys}
    assert len(orders) == len(keys)  # seed 0 epoch 1 is not seed 1 epoch 0
    expected_fixed_points = [int(np.sum(image(1000, *key) == image(1000, 99, "a", 0))) for key in keys]
    assert max(expected_fixed_points) < 10  # orders agree where chance has it (1 place on average)


@pytest.mark.parametrize("n", [1000, 4097, 65537])
def test_it_is_not_affine(n: int) -> None:
    there = image(n, 3, "source", 0).astype(np.int64)
    steps = np.diff(there) % n
    assert np.bincount(steps, minlength=n).max() < 12  # affine: one step, n-1 times
    halves = np.abs(there[: n // 2] - there[n // 2 : n // 2 * 2]) % n
    assert len(np.unique(halves)) > n // 4


def test_every_place_is_equally_likely_over_keys() -> None:
    n, keys = 10, 4000
    counts = np.zeros((n, n))
    for key in range(keys):
        counts[np.arange(n), image(n, key)] += 1
    chi_square = ((counts - keys / n) ** 2 / (keys / n)).sum()
    assert chi_square < 81 + 5 * np.sqrt(2 * 81)  # (n-1)^2 degrees of freedom, five standard deviations


def test_the_order_is_fixed_for_all_time() -> None:
    """A run that resumes under a later version must find its samples where they were."""
    assert image(10, 0, "stdlib", 0).tolist() == GOLDEN_SMALL
    assert [Permutation(10**13, 42, "web", 3)(x) for x in (0, 1, 10**12)] == GOLDEN_LARGE


GOLDEN_SMALL = [3, 5, 7, 6, 2, 1, 9, 8, 4, 0]
GOLDEN_LARGE = [8009355630556, 2859228594426, 6398271033649]


@given(st.integers(1, 2**61), st.integers(0, 2**64), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_inverse_undoes_it_at_any_size(n: int, seed: int, epoch: int, random: object) -> None:
    shuffle = Permutation(n, seed, "source", epoch)
    points = np.array([random.randrange(n) for _ in range(8)] + [0, n - 1], np.uint64)
    assert shuffle.inverse(shuffle.many(points)).tolist() == points.tolist()
    assert shuffle.many(shuffle.inverse(points)).tolist() == points.tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 17, 257, 1000, 4097])
def test_the_inverse_is_the_whole_inverse_where_cycles_are_walked(n: int) -> None:
    everything = np.arange(n, dtype=np.uint64)
    assert np.array_equal(Permutation(n, 7).inverse(image(n, 7)), everything)

"""Promises of random numbers by address."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bigtrain.objective import AddressKeys
from bigtrain.objective.randomness import below, choices, further, happens, numbers, numbers_at, numbers_of_runs

addresses = st.tuples(st.integers(0, 2), st.integers(0, 2**40), st.integers(0, 2**50))


def key_of(seed: int, names: list[str], source: int, epoch: int, sequence: int) -> int:
    address = (np.array([value], np.int64) for value in (source, epoch, sequence))
    return int(AddressKeys(seed, names).of(*address)[0])


def test_the_numbers_are_what_they_were_in_every_version() -> None:
    """A run that goes on with another version of numpy or bigtrain hides the same tokens."""
    key = key_of(7, ["code", "prose"], 1, 2, 3)
    assert key == 3792945732605924004
    assert numbers(np.array([key], np.uint64), 4, 3).tolist() == [[3516564555, 1269274807, 3398898099]]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64 - 1), addresses, addresses)
def test_other_addresses_have_other_keys(seed: int, one: tuple, other: tuple) -> None:
    names = ["a", "b", "c"]
    assert (key_of(seed, names, *one) == key_of(seed, names, *other)) == (one == other)
    assert key_of(seed, names, *one) != key_of(seed ^ 1, names, *one)


@given(addresses)
def test_a_source_keeps_its_keys_when_others_come_before_it(address: tuple) -> None:
    source, *rest = address
    names = ["a", "b", "c"]
    assert key_of(1, names, source, *rest) == key_of(1, ["new", *names], source + 1, *rest)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 50), st.integers(1, 20_000), st.integers(0, 5))
def test_single_numbers_are_those_of_the_whole_row(seed: int, rows: int, count: int, site: int) -> None:
    random = np.random.default_rng(seed)
    keys = random.integers(0, 2**64, rows, np.uint64)
    row, place = random.integers(0, rows, 30), random.integers(0, count, 30)
    assert np.array_equal(numbers_at(keys, site, row, place), numbers(keys, site, count)[row, place])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 20))
def test_numbers_of_runs_are_those_of_the_whole_rows(seed: int, runs: int) -> None:
    random = np.random.default_rng(seed)
    keys, row = random.integers(0, 2**64, 5, np.uint64), random.integers(0, 5, runs)
    site, place, counts = random.integers(0, 3, runs), random.integers(0, 40, runs), random.integers(0, 20, runs)
    whole = [numbers(keys, number, 60) for number in range(3)]
    runs_of = zip(site, row, place, counts, strict=True)
    wanted = np.concatenate([whole[s][r, first : first + count] for s, r, first, count in runs_of])
    assert np.array_equal(numbers_of_runs(keys[row], site, place, counts), wanted)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 300), st.floats(0, 1))
def test_what_happens_follows_from_a_row_and_a_place_alone(seed: int, rows: int, count: int, chance: float) -> None:
    random = np.random.default_rng(seed)
    keys = random.integers(0, 2**64, rows, np.uint64)
    whole = happens(keys, 2, count, chance).reshape(rows, count)
    at = random.integers(0, rows * count, 30)
    assert np.array_equal(happens(keys, 2, count, chance, at), whole.reshape(-1)[at])
    shorter = int(random.integers(1, count + 1))
    alone = [happens(keys[row : row + 1], 2, shorter, chance) for row in range(rows)]
    assert np.array_equal(np.stack(alone), whole[:, :shorter])


@pytest.mark.parametrize("probability", [0.0, 2**-11, 0.15, 38 / 256, 0.5, 0.999, 1.0])
def test_something_happens_with_its_probability(probability: float) -> None:
    """Also where the eight bits of a place leave it open: 2^-11 is less than one of 256."""
    found = happens(np.arange(1000, dtype=np.uint64), 0, 2000, probability)
    assert stats.binomtest(int(found.sum()), found.size, probability).pvalue > 1e-6
    if 0.1 < probability < 0.9:
        found = found.reshape(1000, 2000).astype(float)
        for distance in (1, 7, 8, 64):
            both = np.corrcoef(found[:, distance:].ravel(), found[:, :-distance].ravel())[0, 1]
            assert abs(both) < 5 / np.sqrt(found[:, distance:].size)


def test_what_happens_at_one_site_says_nothing_of_another() -> None:
    keys = np.arange(1000, dtype=np.uint64)
    one, other = (happens(keys, site, 2000, 0.15).astype(float) for site in (0, 2))
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(one.size)


def test_further_numbers_are_uniform_whatever_the_bound() -> None:
    drawn = numbers(np.arange(500, dtype=np.uint64), 0, 1000).ravel()
    for bound in (0.01, 0.15, 1.0):
        chosen = drawn[drawn < below(bound)]
        once = further(chosen)
        for found in (once, further(once), further(once[once < below(0.1)])):
            assert stats.kstest(found / 2**32, "uniform").pvalue > 1e-6
        assert abs(np.corrcoef(chosen, once)[0, 1]) < 5 / np.sqrt(len(chosen))


def test_every_bit_is_fair_and_independent_of_the_others() -> None:
    keys = AddressKeys(0, ["a"]).of(np.zeros(400, np.int64), np.zeros(400, np.int64), np.arange(400))
    drawn = numbers(keys, 0, 1000)
    bits = ((drawn[..., None] >> np.arange(32, dtype=np.uint32)) & 1).astype(np.float64)
    means = bits.reshape(-1, 32).mean(axis=0)
    deviation = 0.5 / np.sqrt(drawn.size)
    assert np.abs(means - 0.5).max() < 5 * deviation
    correlations = np.corrcoef(bits.reshape(-1, 32).T) - np.eye(32)
    assert np.abs(correlations).max() < 5 / np.sqrt(drawn.size)
    assert stats.kstest(drawn.ravel() / 2**32, "uniform").pvalue > 1e-6
    assert stats.kstest(drawn[:, 0] / 2**32, "uniform").pvalue > 1e-6


def test_sites_are_independent() -> None:
    keys = np.arange(300, dtype=np.uint64)
    one, other = (numbers(keys, site, 500).ravel() / 2**32 for site in (0, 1))
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(one.size)


def test_bounds_and_choices_cover_their_range() -> None:
    assert below(0.0) == 0 and below(1.0) == 2**32 - 1 and below(0.5) == 2**31
    assert set(choices(numbers(np.arange(50, dtype=np.uint64), 0, 100).ravel(), 7).tolist()) == set(range(7))

"""Promises of random numbers by address."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bigtrain.objective import AddressKeys
from bigtrain.objective.randomness import below, choices, further, numbers, numbers_at

addresses = st.tuples(st.integers(0, 2), st.integers(0, 2**40), st.integers(0, 2**50))


def key_of(seed: int, names: list[str], source: int, epoch: int, sequence: int) -> int:
    address = (np.array([value], np.int64) for value in (source, epoch, sequence))
    return int(AddressKeys(seed, names).of(*address)[0])


def test_the_numbers_are_what_they_were_in_every_version() -> None:
    """A run that goes on with another version of numpy or bigtrain hides the same tokens."""
    key = key_of(7, ["code", "prose"], 1, 2, 3)
    assert key == 3792945732605924004
    assert numbers(np.array([key], np.uint64), 4, 3).tolist() == [[3542948888, 1692353227, 3845205944]]


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

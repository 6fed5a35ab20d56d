"""A sweep finds the bottom of a bowl, grows at an edge, and says what it could not find."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.estimate import SweepPoint
from bigtrain.trials.ladder.sweep import MOST_EXTENSIONS, minimum, sweep


def bowl(best, tried=None, seeds=(0.0,), diverges_above=math.inf):
    """Measures a parabola in log2 around the best value, for seeds that see it shifted."""

    def measure(values):
        if tried is not None:
            tried.extend(values)
        return [
            SweepPoint(value, [], len(seeds))
            if value > diverges_above
            else SweepPoint(value, [2 + (math.log2(value / best) - shift) ** 2 for shift in seeds], 0)
            for value in values
        ]

    return measure


@given(best=st.floats(-1.9, 1.9))
def test_the_bottom_of_a_parabola_is_found_exactly(best):
    """Whatever the best value between the grid's, as long as it is inside."""
    found = sweep(1e-3, 2, bowl(1e-3 * 2**best))
    if found.inside:
        assert math.log2(found.best / 1e-3) == pytest.approx(best, abs=1e-6)
    assert len(found.points) <= 5 + MOST_EXTENSIONS


@given(best=st.floats(-4.4, 4.4))
def test_a_grid_grows_towards_the_best_value(best):
    """A first grid that misses the best value is moved on, and no value is trained twice."""
    tried = []
    found = sweep(1.0, 2, bowl(2**best, tried))
    assert found.inside and found.best == pytest.approx(2**best, rel=1e-6)
    assert len(tried) == len(set(tried)) == len(found.points)


def test_a_best_value_beyond_reach_is_at_the_edge():
    """What is too far away is not found, and the result says so."""
    found = sweep(1.0, 2, bowl(2.0**12))
    assert not found.inside and found.best == 2.0 ** (2 + MOST_EXTENSIONS)


def test_values_that_diverge_bound_the_grid_from_above():
    """A rate that diverges is a wall: nothing beyond it is tried, and the parabola does not use it."""
    tried = []
    found = sweep(1.0, 2, bowl(4.0, tried, diverges_above=2.5))
    assert max(tried) == 4.0 and found.best == 2.0 and found.points[-1].diverged == 1


def test_only_allowed_values_are_tried():
    """A batch is no smaller than the ranks."""
    tried = []
    found = sweep(4.0, 1, bowl(0.5, tried), allowed=lambda value: value >= 2)
    assert min(tried) == 2.0 and found.best == 2.0 and not found.inside


def test_the_spread_is_that_of_single_seeds():
    """Each seed has a bottom of its own; the best value lies between."""
    found = sweep(1.0, 2, bowl(1.0, seeds=(-0.3, 0.5)))
    assert (found.spread.low, found.spread.high) == pytest.approx((2**-0.3, 2**0.5))
    assert found.best == pytest.approx(2**0.1)


def test_a_hill_has_no_bottom_between_its_points():
    """Three points that do not bend upwards give the best of them."""
    assert minimum([1.0, 2.0, 4.0], [3.0, 3.0, 3.0]) == 1.0

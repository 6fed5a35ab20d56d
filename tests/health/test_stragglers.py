"""Slow ranks are named when they stay slow, and only then; a job stops before its time limit."""

import statistics
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.health.stragglers import WINDOWS, RankComparison, medians_of_others
from bigtrain.train.end_of_job import END_TIME, LARGEST_SHARE, MARGIN_SECONDS, EndOfJob

HOSTS = [f"host-{rank}" for rank in range(64)]


@given(world=st.integers(2, 64), data=st.data())
def test_a_rank_that_stays_slow_is_named_once_and_again_when_it_catches_up(world, data):
    slow = data.draw(st.integers(0, world - 1))
    usual = st.floats(0.95, 1.05)
    comparison = RankComparison(share=0.2)

    def window(factor: float):
        seconds = [data.draw(usual) * (factor if rank == slow else 1) for rank in range(world)]
        return comparison.add(seconds, HOSTS[:world])

    assert [window(1.5) for _ in range(WINDOWS - 1)] == [[]] * (WINDOWS - 1)
    (news,) = window(1.5)
    assert (news.rank, news.host, news.slow) == (slow, f"host-{slow}", True) and f"rank {slow} on" in str(news)
    assert window(1.5) == []
    (news,) = window(1.0)
    assert (news.rank, news.slow) == (slow, False)


@given(st.lists(st.lists(st.floats(0.9, 1.05), min_size=4, max_size=4), max_size=20))
def test_noise_below_the_share_names_no_rank(windows):
    comparison = RankComparison(share=0.2)
    assert not any(comparison.add(seconds, HOSTS[:4]) for seconds in windows)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_hiccups_of_changing_ranks_name_none_until_one_has_three_in_a_row(slow):
    comparison, in_a_row = RankComparison(share=0.2), 0
    for number, rank in enumerate(slow):
        in_a_row = in_a_row + 1 if number and slow[number - 1] == rank else 1
        news = comparison.add([2.0 if other == rank else 1.0 for other in range(4)], HOSTS[:4])
        assert [straggler.rank for straggler in news if straggler.slow] == ([rank] if in_a_row == WINDOWS else [])


def test_a_tiny_models_microseconds_are_noise():
    comparison = RankComparison(share=0.2)
    assert not any(comparison.add([0.001, 0.002], HOSTS[:2]) for _ in range(9))


@given(st.lists(st.floats(0, 1e6) | st.sampled_from([0.1, 0.2]), min_size=2, max_size=40))
def test_the_medians_of_the_others_are_those_of_each_list_of_others(values):
    """One sort gives the same numbers, to the bit, as a median of every list that lacks one value."""
    each = [statistics.median([*values[:index], *values[index + 1 :]]) for index in range(len(values))]
    assert medians_of_others(values) == each


@pytest.mark.parametrize("name", END_TIME)
@pytest.mark.parametrize("given", [10_000.0, 100.0])
def test_a_job_stops_while_there_is_time_for_a_step_and_a_save(monkeypatch, name, given):
    """It stops in time for a last step and a save, and not before it has done a step."""
    for other in END_TIME:
        monkeypatch.delenv(other, raising=False)
    assert not EndOfJob().is_near(10, 20)
    monkeypatch.setenv(name, str(time.time() + given))
    end, started = EndOfJob(), time.monotonic()
    monkeypatch.setattr(time, "time", lambda: 0.0)  # a clock that jumps changes nothing

    def is_near(left: float, save: float | None = 20) -> bool:
        monkeypatch.setattr(time, "monotonic", lambda: started + given - left)
        return end.is_near(10, save)

    margin = min(2 * (10 + 20) + MARGIN_SECONDS, LARGEST_SHARE * given)
    assert not is_near(given) and not is_near(margin + 1) and is_near(margin - 1) and is_near(-5)
    assert given < 1000 or (is_near(160, None) and not is_near(160))

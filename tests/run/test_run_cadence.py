"""checkpoint.every_minutes: auto saves as often as loses least."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.run import cadence
from bigtrain.run.cadence import Cadence, History, history_of, mean_time_between_failures, optimal_interval

HOUR = 3600.0


@pytest.mark.parametrize(
    ("save", "mtbf", "interval"),
    [
        # Daly (2006), equation 37, worked out by hand: sqrt(2 d M) (1 + sqrt(d / 2M) / 3 + d / 18 M) - d
        (300.0, 24 * HOUR, 7200 * (1 + 0.041666666666666664 / 3 + 0.001736111111111111 / 9) - 300),
        (1.0, 2.0, 2 * (1 + 0.5 / 3 + 0.25 / 9) - 1),
        (10.0, 5.0, 5.0),
        (11.0, 5.0, 5.0),
    ],
)
def test_the_interval_is_daly_s(save: float, mtbf: float, interval: float) -> None:
    assert optimal_interval(save, mtbf) == pytest.approx(interval)


@given(mtbf=st.floats(60, 1e7), share=st.floats(1e-9, 1e-5))
def test_where_saves_are_cheap_it_is_young_s(mtbf: float, share: float) -> None:
    save = share * mtbf
    assert optimal_interval(save, mtbf) == pytest.approx(math.sqrt(2 * save * mtbf), rel=0.01)


@given(mtbf=st.floats(60, 1e7), save=st.floats(0.01, 1e4))
def test_dearer_saves_come_less_often_and_failures_more_often_bring_more(mtbf: float, save: float) -> None:
    assert optimal_interval(save, mtbf) > 0
    if save * 1.1 < mtbf / 2:
        assert optimal_interval(save, mtbf) < optimal_interval(save * 1.1, mtbf)
        assert optimal_interval(save, mtbf) < optimal_interval(save, mtbf * 1.1)


def simulated_seconds(work: float, interval: float, save: float, mtbf: float, restart: float, seed: int) -> float:
    """How long a job takes that is thrown back to its last save by each failure, on average over many failures."""
    failures = np.random.default_rng(seed).exponential(mtbf, 400_000)
    segment = interval + save
    whole = np.minimum(np.floor(failures / segment), 1e12)  # segments that were saved before each failure
    gained = np.cumsum(whole * interval)
    needed = int(np.searchsorted(gained, work))
    assert needed < len(failures), "the job would not end"
    return float(failures[: needed + 1].sum() + restart * needed)


@pytest.mark.parametrize(("save", "mtbf"), [(5.0, 2000.0), (30.0, 1000.0), (60.0, 600.0), (1.0, 20_000.0)])
def test_the_interval_is_within_two_percent_of_the_best_in_a_simulation(save: float, mtbf: float) -> None:
    chosen = optimal_interval(save, mtbf)
    work = 100_000 * mtbf / 10
    candidates = chosen * np.geomspace(0.2, 5, 25)
    seconds = [simulated_seconds(work, interval, save, mtbf, 60.0, seed=1) for interval in candidates]
    ours = simulated_seconds(work, chosen, save, mtbf, 60.0, seed=1)
    assert ours <= 1.02 * min(seconds)
    waste = [each / work - 1 for each in (ours, seconds[0], seconds[-1])]
    assert waste[1] > 1.4 * waste[0] and waste[2] > 1.4 * waste[0]  # it does matter


def test_without_experience_a_device_fails_once_in_15_000_hours() -> None:
    assert mean_time_between_failures(History(), 1) == pytest.approx(15_000 * HOUR)
    assert mean_time_between_failures(History(), 1000) == pytest.approx(15 * HOUR)


def test_experience_counts_more_the_more_there_is() -> None:
    seen = History(failures=99, device_seconds=99 * 1000 * HOUR)  # fails fifteen times as often
    assert mean_time_between_failures(seen, 1) == pytest.approx((15_000 + 99_000) / 100 * HOUR)
    assert mean_time_between_failures(History(0, 30_000 * HOUR), 1) == pytest.approx(45_000 * HOUR)


def event(kind: str, time: float, **details: int) -> dict[str, object]:
    return {"event": kind, "time": time, **details}


def test_a_start_that_did_not_say_stop_has_failed() -> None:
    events = [
        event("start", 0, world_size=4),
        event("commit", 50),
        event("resume", 100, world_size=4),  # the first start had failed
        event("commit", 150),
        event("stop", 160),
        event("fallback", 1000),
        event("resume", 1000, world_size=2),
        event("commit", 1300),
    ]
    # The last start is not told apart from one that goes on: the caller asks before it begins.
    assert history_of(events[:2]) == History(1, 200)
    assert history_of(events[:5]) == History(1, 50 * 4 + 60 * 4)
    assert history_of(events) == History(2, 50 * 4 + 60 * 4 + 300 * 2)
    assert history_of([]) == History()


def test_a_clock_that_was_set_back_takes_no_time_away() -> None:
    events = [event("start", 1000, world_size=1), event("commit", 900), event("stop", 950), event("start", 500)]
    assert history_of(events).device_seconds == 0


def test_the_first_save_comes_early_and_then_its_cost_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cadence.time, "monotonic", lambda: 0.0)
    of = Cadence(History(), devices=1000)
    assert of.interval_seconds == cadence.FIRST_SAVE_SECONDS and of.news() is None
    of.saved(2.0, 2.0)
    assert of.interval_seconds == pytest.approx(optimal_interval(2.0, 15 * HOUR))
    assert "saving every 463s" in str(of.news()) and of.news() is None
    of.saved(2.2, 2.2)
    assert of.news() is None  # not by more than a fifth
    for _ in range(5):
        of.saved(8.0, 8.0)
    assert "saving every" in str(of.news())


def test_one_slow_save_does_not_move_the_interval() -> None:
    of = Cadence(History(), devices=1)
    for stall in (1.0, 1.0, 60.0, 1.0):
        of.saved(stall, stall)
    assert of.interval_seconds == pytest.approx(optimal_interval(1.0, 15_000 * HOUR), rel=0.01)


def test_no_save_is_due_before_the_last_one_is_durable() -> None:
    of = Cadence(History(failures=10**6), devices=1)
    of.saved(0.01, 300.0)
    assert optimal_interval(0.01, of.mtbf_seconds) < 300 == of.interval_seconds

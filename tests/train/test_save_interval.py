"""checkpoint.every_minutes: auto saves as often as loses least."""

from __future__ import annotations

import pytest

from bigtrain.estimate.goodput import optimal_interval
from bigtrain.train import save_interval
from bigtrain.train.save_interval import FailureHistory, SaveInterval, failure_history, mean_time_between_failures

HOUR = 3600.0


def test_without_experience_a_device_fails_once_in_15_000_hours() -> None:
    assert mean_time_between_failures(FailureHistory(), 1) == pytest.approx(15_000 * HOUR)
    assert mean_time_between_failures(FailureHistory(), 1000) == pytest.approx(15 * HOUR)


def test_experience_counts_more_the_more_there_is() -> None:
    seen = FailureHistory(failures=99, device_seconds=99 * 1000 * HOUR)  # fails fifteen times as often
    assert mean_time_between_failures(seen, 1) == pytest.approx((15_000 + 99_000) / 100 * HOUR)
    assert mean_time_between_failures(FailureHistory(0, 30_000 * HOUR), 1) == pytest.approx(45_000 * HOUR)


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
    assert failure_history(events[:2]) == FailureHistory(1, 200)
    assert failure_history(events[:5]) == FailureHistory(1, 50 * 4 + 60 * 4)
    assert failure_history(events) == FailureHistory(2, 50 * 4 + 60 * 4 + 300 * 2)
    assert failure_history([]) == FailureHistory()


def test_a_clock_that_was_set_back_takes_no_time_away() -> None:
    events = [event("start", 1000, world_size=1), event("commit", 900), event("stop", 950), event("start", 500)]
    assert failure_history(events).device_seconds == 0


def test_the_first_save_comes_early_and_then_its_cost_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save_interval.time, "monotonic", lambda: 0.0)
    of = SaveInterval(FailureHistory(), devices=1000)
    assert of.interval_seconds == save_interval.FIRST_SAVE_SECONDS and of.news() is None
    of.saved(2.0, 2.0)
    assert of.interval_seconds == pytest.approx(optimal_interval(2.0, 15 * HOUR))
    assert "saving every 463s" in str(of.news()) and of.news() is None
    of.saved(2.2, 2.2)
    assert of.news() is None  # not by more than a fifth
    for _ in range(5):
        of.saved(8.0, 8.0)
    assert "saving every" in str(of.news())


def test_one_slow_save_does_not_move_the_interval() -> None:
    of = SaveInterval(FailureHistory(), devices=1)
    for stall in (1.0, 1.0, 60.0, 1.0):
        of.saved(stall, stall)
    assert of.interval_seconds == pytest.approx(optimal_interval(1.0, 15_000 * HOUR), rel=0.01)


def test_no_save_is_due_before_the_last_one_is_durable() -> None:
    of = SaveInterval(FailureHistory(failures=10**6), devices=1)
    of.saved(0.01, 300.0)
    assert optimal_interval(0.01, of.mtbf_seconds) < 300 == of.interval_seconds

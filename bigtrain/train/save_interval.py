"""How often to save, so that the sum of the costs of saves and of failures is least.

A save stops the training for d seconds. A failure, every M seconds on average, loses the work since the last save.
With t seconds of training between two saves a share of about d / t + t / 2M is lost, least at t = sqrt(2 d M)
(Young, 1974). `bigtrain.estimate.goodput` has the whole model; its `optimal_interval`, the higher-order estimate of
Daly (2006), also holds where a save takes a large part of M.

d is measured: the time that the training stood still. The time that a save takes in the background is not part of it.
A failure loses that time once more whatever t is, so it does not move the optimum. But a save waits for the one before
it, so t cannot be less. The cost of a restart does not move the optimum either.

M is estimated from published failure rates and from the history of this run. Failures of a device are a Poisson process
whose rate has a Gamma prior of one failure in 15,000 device-hours; each failure and each hour moves it towards the
run's own rate. (Of large runs that were published, OPT-175B had about one in
13,000 GPU-hours, some 105 restarts in two months on 992 GPUs; Llama 3 405B one in 51,000, 419 in 54 days on 16,384.)
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bigtrain.estimate import optimal_interval
from bigtrain.rundir import STARTS, Event, seconds_of

PRIOR_FAILURES = 1.0
PRIOR_DEVICE_SECONDS = 15_000 * 3600.0
FIRST_SAVE_SECONDS = 60.0
"""The interval until the first save has shown its cost."""
NOTEWORTHY = 0.2
"""A change of the interval by more than this share is logged."""
RECENT_SAVES = 5

Record = Mapping[str, Any]


@dataclass(frozen=True)
class FailureHistory:
    """The failures and the time of a run before this start."""

    failures: int = 0
    """Starts that ended neither at the last step nor on request."""
    device_seconds: float = 0.0
    """Of all its starts, each times its devices."""


def failure_history(events: Iterable[Record]) -> FailureHistory:
    """Count in events.jsonl how often a run has failed, and in how much time.

    A start that is followed by another one without a `stop` in between has failed. The time of the failure is not
    known; the last event before the next start is used, which on average is half an interval of saving too early.
    """
    failures, device_seconds = 0, 0.0
    began, last, devices, runs = 0.0, 0.0, 1, False
    for event in events:
        if event["event"] in STARTS:
            failures += runs
            device_seconds += (last - began) * devices
            began, devices, runs = seconds_of(event, "time"), event.get("world_size", 1), True
            last = began
        elif runs and event["event"] != Event.FALLBACK:  # which the next start writes first
            last = max(seconds_of(event, "time"), began)
            runs = event["event"] != Event.STOP
    return FailureHistory(failures + runs, device_seconds + (last - began) * devices)


def mean_time_between_failures(history: FailureHistory, devices: int) -> float:
    """Seconds, for a job on `devices` devices: the inverse of the rate's posterior mean."""
    rate = (PRIOR_FAILURES + history.failures) / (PRIOR_DEVICE_SECONDS + history.device_seconds)
    return 1 / (rate * devices)


class SaveInterval:
    """The interval between saves of one start, as rank 0 sees it."""

    def __init__(self, history: FailureHistory, devices: int) -> None:
        self._history, self._devices = history, devices
        self._started = time.monotonic()
        self._stalls: deque[float] = deque(maxlen=RECENT_SAVES)
        self._durable = 0.0
        self._logged: float | None = None

    def saved(self, stall_seconds: float, durable_seconds: float) -> None:
        """Record a save: how long the training stood still, and how long it took until it was durable."""
        self._stalls.append(stall_seconds)
        self._durable = durable_seconds

    @property
    def mtbf_seconds(self) -> float:
        """Mean time between failures that is expected of the job now, in seconds."""
        alive = (time.monotonic() - self._started) * self._devices
        history = FailureHistory(self._history.failures, self._history.device_seconds + alive)
        return mean_time_between_failures(history, self._devices)

    @property
    def interval_seconds(self) -> float:
        """How long to train before the next save starts, in seconds."""
        if not self._stalls:
            return FIRST_SAVE_SECONDS
        typical = statistics.median_high(self._stalls)  # one slow disk access does not count
        return max(optimal_interval(typical, self.mtbf_seconds), self._durable)

    def news(self) -> str | None:
        """One line about the interval, where it differs from the one that was logged last; else None."""
        if not self._stalls:
            return None
        interval = self.interval_seconds
        if self._logged is not None and abs(interval - self._logged) <= NOTEWORTHY * self._logged:
            return None
        self._logged = interval
        return (
            f"saving every {interval:,.0f}s: a save costs {statistics.median_high(self._stalls):.2f}s, and one "
            f"failure in {self.mtbf_seconds / 3600:,.1f}h is expected ({self._history.failures} so far)"
        )

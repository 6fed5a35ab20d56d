"""How often to save, so that saving and the work that a failure costs are least together.

A save holds the training up for d seconds; a failure, which comes every M seconds on average, costs what was done
since the last save. With t seconds of training between two saves, of each second a share of about d / t + t / 2M is
lost, least at t = sqrt(2 d M) (Young, 1974). `bigtrain.estimate.goodput` has the whole model; its `optimal_interval`,
the higher-order estimate of Daly (2006), still holds where a save takes a good part of M.

d is measured: what the training stood still for. Time that a save takes behind the training is no part of it; it is
lost once more at each failure, whatever t is, and so moves no optimum, but a save waits for the one before it and so it
is the least that t can be. What a restart costs moves no optimum either.

M is estimated from what is known of machines and what this run has been through. Failures of a device are a Poisson
process whose rate has a Gamma distribution: before the first one, that of one failure in 15,000 device-hours, and with
each failure and each hour more and more the run's own. (Of large runs that were published, OPT-175B had about one in
13,000 GPU-hours, some 105 restarts in two months on 992 GPUs; Llama 3 405B one in 51,000, 419 in 54 days on 16,384.)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bigtrain.estimate.goodput import optimal_interval
from bigtrain.rundir.events import STARTS, Event

PRIOR_FAILURES = 1.0
PRIOR_DEVICE_SECONDS = 15_000 * 3600.0
FIRST_SAVE_SECONDS = 60.0
"""The interval until the first save has shown what one costs."""
NOTEWORTHY = 0.2
"""A change of the interval by more than this share is told."""
RECENT_SAVES = 5

Record = Mapping[str, Any]


@dataclass(frozen=True)
class FailureHistory:
    """What a run has been through before this start."""

    failures: int = 0
    """Starts that did not end by themselves or on request."""
    device_seconds: float = 0.0
    """Of all its starts, each times its devices."""


def failure_history(events: Iterable[Record]) -> FailureHistory:
    """Read off events.jsonl how often a run has failed, and in how much time.

    A start that is followed by another one without a `stop` in between has failed. When, is not known; the last event
    before the next start stands for it, which on average counts the time too short by half an interval of saving.
    """
    failures, device_seconds = 0, 0.0
    began, last, devices, runs = 0.0, 0.0, 1, False
    for event in events:
        if event["event"] in STARTS:
            failures += runs
            device_seconds += (last - began) * devices
            began, devices, runs = event["time"], event.get("world_size", 1), True
            last = began
        elif runs and event["event"] != Event.FALLBACK:  # which the next start writes before it begins
            last = max(event["time"], began)
            runs = event["event"] != Event.STOP
    return FailureHistory(failures + runs, device_seconds + (last - began) * devices)


def mean_time_between_failures(history: FailureHistory, devices: int) -> float:
    """Seconds, for a job on so many devices: the inverse of the rate's posterior mean."""
    rate = (PRIOR_FAILURES + history.failures) / (PRIOR_DEVICE_SECONDS + history.device_seconds)
    return 1 / (rate * devices)


class SaveInterval:
    """The interval between saves of one start, as rank 0 sees it."""

    def __init__(self, history: FailureHistory, devices: int) -> None:
        self._history, self._devices = history, devices
        self._started = time.monotonic()
        self._stalls: deque[float] = deque(maxlen=RECENT_SAVES)
        self._durable = 0.0
        self._told: float | None = None

    def saved(self, stall_seconds: float, durable_seconds: float) -> None:
        """A save is done: how long the training stood still for it, and how long it took until it was durable."""
        self._stalls.append(stall_seconds)
        self._durable = durable_seconds

    @property
    def mtbf_seconds(self) -> float:
        """What the job can expect, as far as one knows by now."""
        alive = (time.monotonic() - self._started) * self._devices
        history = FailureHistory(self._history.failures, self._history.device_seconds + alive)
        return mean_time_between_failures(history, self._devices)

    @property
    def interval_seconds(self) -> float:
        """How long to train before the next save begins."""
        if not self._stalls:
            return FIRST_SAVE_SECONDS
        typical = sorted(self._stalls)[len(self._stalls) // 2]  # one slow disk access is no habit
        return max(optimal_interval(typical, self.mtbf_seconds), self._durable)

    def news(self) -> str | None:
        """One line about the interval where it is not the one that was told last."""
        if not self._stalls:
            return None
        interval = self.interval_seconds
        if self._told is not None and abs(interval - self._told) <= NOTEWORTHY * self._told:
            return None
        self._told = interval
        return (
            f"saving every {interval:,.0f}s: a save costs {sorted(self._stalls)[len(self._stalls) // 2]:.2f}s, and one "
            f"failure in {self.mtbf_seconds / 3600:,.1f}h is expected ({self._history.failures} so far)"
        )

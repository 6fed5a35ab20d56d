"""The end of a job's time limit: the run commits and leaves before the scheduler kills it.

A scheduler's warning signal has the same effect (bigtrain/train/stop.py). This works without one, and knows how long a
step and a save of this run take.
"""

from __future__ import annotations

import time

from bigtrain.base import text_of, usable_seconds, warn_once

END_TIME = ("BIGTRAIN_END_TIME", "SLURM_JOB_END_TIME")
"""Environment variables: when the job ends, in seconds since 1970; the first that can be true counts."""
LONGEST_JOB_SECONDS = 400 * 86_400
"""A job that has longer to go has another unit in its variable."""
MARGIN_SECONDS = 30.0
"""Time to leave in order, in addition to the save."""
UNKNOWN_SAVE_SECONDS = 60.0
"""Assumed duration of a save before the first one."""
LARGEST_SHARE = 0.2
"""Largest share of the job's time that may stay unused, so that a short job makes progress too."""


class EndOfJob:
    """When the job ends, by the monotonic clock."""

    def __init__(self) -> None:
        left = next((left for name in END_TIME if (left := _seconds_left(name)) is not None), None)
        self._end = None if left is None else time.monotonic() + left
        self._most = LARGEST_SHARE * max(left or 0.0, 0.0)

    def is_near(self, step_seconds: float, save_seconds: float | None) -> bool:
        """Whether after one more step there might be no time for a save.

        Args:
            step_seconds: duration of a step.
            save_seconds: duration of a save until it is durable; None before the first one.
        """
        if self._end is None:
            return False
        save = UNKNOWN_SAVE_SECONDS if save_seconds is None else save_seconds
        return time.monotonic() + min(2 * (step_seconds + save) + MARGIN_SECONDS, self._most) > self._end


def _seconds_left(name: str) -> float | None:
    """How long the job has by a variable; None where it is not set, or is left over from a job that is over."""
    end = usable_seconds(name)
    if end is None:
        return None
    left = end - time.time()
    if left <= 0:
        warn_once(f"{name}={text_of(name)} is ignored: that time is over, so it is left over from an earlier job")
    elif left > LONGEST_JOB_SECONDS:
        warn_once(f"{name}={text_of(name)} is ignored: no job ends so late, so it is not in seconds since 1970")
    else:
        return left
    return None

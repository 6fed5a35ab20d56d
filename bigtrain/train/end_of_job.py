"""The end of a job's time limit: the run commits and leaves before the scheduler kills it.

A scheduler's warning signal has the same effect (bigtrain/train/stop.py). This works without one, and knows how long a
step and a save of this run take.
"""

from __future__ import annotations

import os
import time

END_TIME = ("BIGTRAIN_END_TIME", "SLURM_JOB_END_TIME")
"""Environment variables: when the job ends, in seconds since 1970; the first that is set counts."""
MARGIN_SECONDS = 30.0
"""Time to leave in order, in addition to the save."""
UNKNOWN_SAVE_SECONDS = 60.0
"""Assumed duration of a save before the first one."""
LARGEST_SHARE = 0.2
"""Largest share of the job's time that may stay unused, so that a short job makes progress too."""


class EndOfJob:
    """When the job ends, by the monotonic clock."""

    def __init__(self) -> None:
        given = next((os.environ[name] for name in END_TIME if os.environ.get(name)), None)
        left = None if given is None else float(given) - time.time()
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

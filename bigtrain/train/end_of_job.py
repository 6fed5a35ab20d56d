"""The end of the time that a job was given: it commits and leaves before it would be killed.

A scheduler's warning signal does the same (bigtrain/train/stop.py); this needs none, and knows how long a step and a
save of this run take.
"""

from __future__ import annotations

import os
import time

END_TIME = ("BIGTRAIN_END_TIME", "SLURM_JOB_END_TIME")
"""Environment variables: when the job ends, in seconds since 1970; the first that is set counts."""
MARGIN_SECONDS = 30.0
"""For leaving in order, beside the save."""
UNKNOWN_SAVE_SECONDS = 60.0
"""What a save is taken for until there has been one."""
LARGEST_SHARE = 0.2
"""Of the job's time that may be left unused: however short it is, a start has to get somewhere."""


class EndOfJob:
    """When the job ends, by a clock that does not jump."""

    def __init__(self) -> None:
        given = next((os.environ[name] for name in END_TIME if os.environ.get(name)), None)
        left = None if given is None else float(given) - time.time()
        self._end = None if left is None else time.monotonic() + left
        self._most = LARGEST_SHARE * max(left or 0.0, 0.0)

    def is_near(self, step_seconds: float, save_seconds: float | None) -> bool:
        """Whether after one more step there might be no time for a save.

        Args:
            step_seconds: what a step takes.
            save_seconds: what a save takes until it is durable; None where there has been none.
        """
        if self._end is None:
            return False
        save = UNKNOWN_SAVE_SECONDS if save_seconds is None else save_seconds
        return time.monotonic() + min(2 * (step_seconds + save) + MARGIN_SECONDS, self._most) > self._end

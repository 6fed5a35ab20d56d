"""When a run saves: after which steps, after how much time, and in time before its job ends.

Every rank knows which steps are due. The clocks are those of rank 0 alone, whose vote counts (`vote.py`).
"""

from __future__ import annotations

import time

from bigtrain.config import CheckpointSettings
from bigtrain.train.end_of_job import EndOfJob
from bigtrain.train.save_interval import SaveInterval


class SavePolicy:
    """Decides when to save.

    Args:
        settings: the section `checkpoint`.
        step: where the run stands; a checkpoint of that step is there already.
        interval: chooses the time between two saves, where `every_minutes` leaves that to it.
    """

    def __init__(self, settings: CheckpointSettings, step: int, interval: SaveInterval | None = None) -> None:
        self._settings, self._interval = settings, interval
        self._end_of_job = EndOfJob()
        self._durable_seconds: float | None = None
        self.saved(step)

    def is_due_after(self, step: int) -> bool:
        """Whether this step, or one since the last save, is one to save after (`every_steps`)."""
        every = self._settings.every_steps
        return every is not None and step // every > self.saved_step // every

    @property
    def time_is_over(self) -> bool:
        """Whether the time between two saves is over (`every_minutes`)."""
        minutes, seconds = self._settings.every_minutes, time.monotonic() - self._saved_at
        if minutes is None:
            return False
        if minutes == "auto":
            return self._interval is not None and seconds > self._interval.interval_seconds
        return seconds > 60 * minutes

    def job_ends_soon(self, step_seconds: float) -> bool:
        """Whether after one more step, of so many seconds, there might be no time for a save."""
        return self._end_of_job.is_near(step_seconds, self._durable_seconds)

    def saved(self, step: int) -> None:
        """A checkpoint of this step is there, or on its way."""
        self.saved_step, self._saved_at = step, time.monotonic()

    def committed(self, *, stall_seconds: float, durable_seconds: float) -> str | None:
        """A save is durable; returns what there is to say about the interval from here on.

        Args:
            stall_seconds: how long the training stood still for it.
            durable_seconds: from its start to its commit.
        """
        self._durable_seconds = max(durable_seconds, self._durable_seconds or 0.0)
        if self._interval is None:
            return None
        self._interval.saved(stall_seconds=stall_seconds, durable_seconds=durable_seconds)
        return self._interval.news()

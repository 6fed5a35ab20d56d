"""When a process started and what preceded it: its first event records it, and the ledger places the start by it."""

from __future__ import annotations

import time
from typing import Any

from bigtrain.base import (
    DIED,
    boot_id,
    boot_seconds,
    launcher_pid,
    process_seconds,
    seconds_before_this_process,
    usable_seconds,
)

QUEUED_SINCE = "BIGTRAIN_QUEUED_SINCE"
"""Environment variable, set by a launcher: since when the job has been ready to run, in seconds since 1970."""
JOB_BEGAN = ("BIGTRAIN_JOB_BEGAN", "SLURM_JOB_START_TIME")
"""Environment variables: when the job started to run, likewise. Without them: when its launcher did."""


class Phases:
    """The seconds of each phase of the set-up."""

    def __init__(self) -> None:
        """The first phase, the imports, ends now."""
        self._so_far = process_seconds()
        self.seconds = {"imports": round(self._so_far, 3)}

    def end(self, name: str) -> None:
        """The phase that started with the end of the last one is over."""
        now = process_seconds()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._so_far, 3)
        self._so_far = now


def clock() -> dict[str, Any]:
    """When this process started, by the clock of its machine, and what preceded it; all in seconds.

    `before_seconds` is from the start of the job, or of the launcher, to the start of this process. `queued_seconds` is
    how long the job waited in the queue before. `died_seconds` is how long before the start of this process the
    launcher saw the last start die. The first start of a launcher has the first two, later ones have the third.
    """
    now, age = boot_seconds(), process_seconds()
    if (died := _number(DIED)) is not None:
        before = queued = 0.0
    else:
        before, queued = _before()
    return {
        "boot_id": boot_id(),
        "boot_seconds": round(now, 3),
        "process_seconds": round(age, 3),
        "before_seconds": round(before, 3),
        "queued_seconds": round(queued, 3),
        **({} if died is None else {"died_seconds": round(max(0.0, now - age - died), 3)}),
    }


def _before() -> tuple[float, float]:
    """Seconds from the start of the job to that of this process, and in the queue before, as far as is known."""
    launcher = launcher_pid()
    before = seconds_before_this_process(launcher) if launcher else 0.0
    process_began = time.time() - process_seconds()
    ended = usable_seconds(
        "SLURM_JOB_END_TIME"
    )  # of a job that is over: what else Slurm has left over is of that job too
    left_over = ended is not None and ended < process_began
    known = (at for name in JOB_BEGAN if not (left_over and name.startswith("SLURM_")) for at in (_number(name),))
    job_began = next((at for at in known if at is not None and at <= process_began + 60), process_began - before)
    queued_since = _number(QUEUED_SINCE)
    queued = 0.0 if queued_since is None else max(0.0, job_began - queued_since)
    return max(before, process_began - job_began), queued


def _number(variable: str) -> float | None:
    return usable_seconds(variable)

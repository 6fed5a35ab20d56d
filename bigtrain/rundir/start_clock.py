"""How a start came about, told in its first event: what it needs to be put into the ledger beside the other starts."""

from __future__ import annotations

import os
import time
from typing import Any

from bigtrain.base.clock import boot_id, boot_seconds, process_seconds, seconds_before_this_process
from bigtrain.base.launcher_protocol import DIED, LAUNCHER

QUEUED_SINCE = "BIGTRAIN_QUEUED_SINCE"
"""Environment variable of a launcher that knows: since when the job has been ready to run, in seconds since 1970."""
JOB_BEGAN = ("BIGTRAIN_JOB_BEGAN", "SLURM_JOB_START_TIME")
"""Environment variables: when it began to run, likewise. Without them, when its launcher did."""


class Phases:
    """The seconds of a start's beginning, one phase after the other."""

    def __init__(self) -> None:
        """The first phase, the imports, ends now."""
        self._so_far = process_seconds()
        self.seconds = {"imports": round(self._so_far, 3)}

    def end(self, name: str) -> None:
        """What came since the last phase was this one."""
        now = process_seconds()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._so_far, 3)
        self._so_far = now


def clock() -> dict[str, Any]:
    """When this process began, by the clock of its machine, and what went before it; all in seconds.

    `before_seconds` is from the begin of the job, or of the launcher, to that of this process; `queued_seconds` is what
    the job waited before; `died_seconds` is when the start before was seen to have died, before this process began. The
    launcher's first start has the former two, the others the latter.
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
    """From the begin of the job to that of this process, and before that in the queue, as far as is known."""
    launcher = int(os.environ.get(LAUNCHER, "0"))
    before = seconds_before_this_process(launcher) if launcher else 0.0
    process_began = time.time() - process_seconds()
    job_began = next((at for at in map(_number, JOB_BEGAN) if at is not None), process_began - before)
    queued_since = _number(QUEUED_SINCE)
    queued = 0.0 if queued_since is None else max(0.0, job_began - queued_since)
    return max(before, process_began - job_began), queued


def _number(variable: str) -> float | None:
    try:
        return float(os.environ[variable])
    except (KeyError, ValueError):
        return None

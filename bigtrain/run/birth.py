"""How a start came about, told in its first event: what it needs to be put into the ledger beside the other starts."""

from __future__ import annotations

import os
import time
from typing import Any

from bigtrain.run.clock import boot_id, boot_seconds, process_seconds, seconds_before_this_process
from bigtrain.run.stop import LAUNCHER

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
    """When this process began, by the clock of its machine, and what went before it."""
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    launcher = int(os.environ.get(LAUNCHER, "0"))
    launcher_seconds = seconds_before_this_process(launcher) if first and launcher else 0.0
    return {
        "boot_id": boot_id(),
        "boot_seconds": round(boot_seconds(), 3),
        "process_seconds": round(process_seconds(), 3),
        "launcher_seconds": round(launcher_seconds, 3),
        "queued_seconds": round(_queued_seconds(launcher_seconds) if first else 0.0, 3),
    }


def _queued_seconds(launcher_seconds: float) -> float:
    since = _epoch(QUEUED_SINCE)
    if since is None:
        return 0.0
    launched = time.time() - process_seconds() - launcher_seconds
    began = next((at for at in map(_epoch, JOB_BEGAN) if at is not None), launched)
    return max(0.0, began - since)


def _epoch(variable: str) -> float | None:
    try:
        return float(os.environ[variable])
    except (KeyError, ValueError):
        return None

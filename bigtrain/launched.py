"""What the launcher and its workers tell each other, by environment variables."""

from __future__ import annotations

import os
import time
from pathlib import Path

LAUNCHER = "BIGTRAIN_LAUNCHER_PID"
"""The process that started the ranks of this node."""
STORE = "BIGTRAIN_STORE"
"""host:port of the store that the ranks of this start meet in; it lies in a launcher, and outlives every rank."""
PROGRESS = "BIGTRAIN_PROGRESS"
"""A file of this node: the newest step whose checkpoint is committed. Restarts are counted anew behind it."""

DIED = "BIGTRAIN_DIED"
"""When a rank of the last start was seen to have died, in seconds since this machine was started."""


def note_death() -> None:
    """Tell the workers of the next start when the last one died; the ledger of a run has no other way to know."""
    os.environ[DIED] = f"{time.clock_gettime(time.CLOCK_BOOTTIME):.3f}"


def hung_mark(progress: str, rank: str) -> Path:
    """A file that a rank leaves beside the other when it ends a run that hung: a process that waits for a disk does not
    end however it is killed, and its launcher has to know all the same.
    """
    return Path(f"{progress}.hung-{rank}")


def tell_hung() -> None:
    """Leave that mark for the launcher, if there is one."""
    if PROGRESS in os.environ:
        hung_mark(os.environ[PROGRESS], os.environ["RANK"]).touch()


def tell_progress(step: int) -> None:
    """Tell the launcher, if there is one, that the checkpoint of a step is committed."""
    if PROGRESS in os.environ and os.environ.get("LOCAL_RANK", "0") == "0":
        file = Path(os.environ[PROGRESS])
        written = file.with_name(f"{file.name}.new")
        written.write_text(str(step))
        written.replace(file)

"""What the launcher and its workers report_end each other, by environment variables, files and signals."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

WARNINGS = (signal.SIGUSR1, signal.SIGHUP)
"""However often they come they ask for no more than a stop in order: queues repeat them, and end a job by another."""
ORDERS = (signal.SIGTERM, signal.SIGINT)
STOP_SIGNALS = (*WARNINGS, *ORDERS)
"""All that ask for an end. The launcher hands them on."""
LAUNCHER = "BIGTRAIN_LAUNCHER_PID"
"""The process that started the ranks of this node."""
STORE = "BIGTRAIN_STORE"
"""host:port of the store that the ranks of this start meet in; it lies in a launcher, and outlives every rank."""
PROGRESS = "BIGTRAIN_PROGRESS"
"""A file of this node: the newest step whose checkpoint is committed. Restarts are counted anew behind it."""

DIED = "BIGTRAIN_DIED"
"""When a rank of the last start was seen to have died, in seconds since this machine was started."""


def ignore_stop_signals() -> None:
    """The status stands: what comes from here on comes too late, and must not be answered by another one."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def record_death() -> None:
    """Tell the workers of the next start when the last one died; the ledger of a run has no other way to know."""
    os.environ[DIED] = f"{time.clock_gettime(time.CLOCK_BOOTTIME):.3f}"


End = Literal["hung", "crashed"]


def mark_of(progress: str, end: End, rank: str) -> Path:
    """A file with the time, in nanoseconds, that a rank leaves beside the other before it ends.

    When it ends a run that hung: a process that waits for a disk does not end however it is killed. When it crashes:
    others lose their connections to it and crash as well, and by the time it is seen who was first.
    """
    return Path(f"{progress}.{end}-{rank}")


def report_end(end: End) -> None:
    """Leave that mark for the launcher, if there is one."""
    if PROGRESS in os.environ:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        with suppress(OSError):  # a full disk is not to hide why the rank ends
            _write_whole(mark_of(os.environ[PROGRESS], end, os.environ["RANK"]), str(now))


def report_progress(step: int) -> None:
    """Tell the launcher, if there is one, that the checkpoint of a step is committed."""
    if PROGRESS in os.environ and os.environ.get("LOCAL_RANK", "0") == "0":
        _write_whole(Path(os.environ[PROGRESS]), str(step))


def _write_whole(file: Path, text: str) -> None:
    """So that the launcher, which looks at any moment, never sees a part of it."""
    written = file.with_name(f"{file.name}.new")
    written.write_text(text)
    written.replace(file)

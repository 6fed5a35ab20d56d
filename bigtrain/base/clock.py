"""Clocks that are never set: the age of this process, and of other processes of this machine.

Records carry the time of day as well, for people. It may jump, also backwards, when a clock is set. Durations are
therefore measured by these clocks.
"""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path

OLDEST_AT_FIRST_LOOK = 3600.0
"""Seconds. A process that seems older than this at its first look has a clock that cannot be trusted."""


def process_seconds() -> float:
    """Return the seconds since this process was started, imports included."""
    return time.monotonic() - _start_of_this(os.getpid())


def seconds_before_this_process(pid: int) -> float:
    """Return the seconds by which another process of this machine is older; 0 where it is younger, or has ended."""
    try:
        return max(0.0, _start_of(os.getpid()) - _start_of(pid))
    except OSError:
        return 0.0


def boot_id() -> str | None:
    """Return an id of this start of this machine, which no other start and no other machine has; None if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def boot_seconds() -> float:
    """Return the seconds since this machine was started, including those in which it was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def _start_of_this(pid: int) -> float:
    """When this process started, by the monotonic clock; cached by its id, because a fork starts a new process."""
    try:
        age = boot_seconds() - _start_of(pid)
    except OSError:
        age = 0.0
    return time.monotonic() - (age if 0 <= age <= OLDEST_AT_FIRST_LOOK else 0.0)


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in ticks since this machine was started; None where there is no such process."""
    try:
        return _ticks(pid)
    except OSError:
        return None


def _start_of(pid: int) -> float:
    """When a process started, in seconds since this machine was started."""
    return _ticks(pid) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    fields_after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields_after_name[19])

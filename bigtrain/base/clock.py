"""Clocks that nobody sets: how old this process is, and how it lies in time to other processes of this machine.

Records carry the time of day as well, for people. It may jump, backwards too, when a clock is set; so what is summed up
is measured by these.
"""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path

OLDEST_AT_FIRST_LOOK = 3600.0
"""A process that would have been older when it asked for the first time has a clock that cannot be trusted."""


def process_seconds() -> float:
    """Seconds since this process was started, imports included."""
    return time.monotonic() - _born(os.getpid())


def seconds_before_this_process(pid: int) -> float:
    """How much older another process of this machine is; 0 where it is younger, or is gone."""
    try:
        return max(0.0, _started(os.getpid()) - _started(pid))
    except OSError:
        return 0.0


def boot_id() -> str | None:
    """Stays the same until this machine is started anew, and is another one on another machine; None if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def boot_seconds() -> float:
    """Seconds since this machine was started, those that it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def _born(pid: int) -> float:
    """When this process began, by the monotonic clock. By its id, because a forked process has a birth of its own."""
    try:
        age = boot_seconds() - _started(pid)
    except OSError:
        age = 0.0
    return time.monotonic() - (age if 0 <= age <= OLDEST_AT_FIRST_LOOK else 0.0)


def _started(pid: int) -> float:
    """When a process began, in seconds since this machine was started."""
    behind_the_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(behind_the_name[19]) / os.sysconf("SC_CLK_TCK")

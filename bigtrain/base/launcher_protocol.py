"""The protocol between the launcher and its workers: environment variables, files and signals."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Literal

from bigtrain.base.environment import text_of, warn_once
from bigtrain.base.files import write_atomically

WARNINGS = (signal.SIGUSR1, signal.SIGHUP)
"""Signals that ask for an orderly stop, however often they come. Queues repeat them, and end a job by another one."""
STOP_SIGNALS = (*WARNINGS, signal.SIGTERM, signal.SIGINT)
"""All signals that ask for a stop. The launcher forwards them to its workers."""
LAUNCHER = "BIGTRAIN_LAUNCHER_PID"
"""Environment variable: the process id of the launcher that started the ranks of this node."""
STORE = "BIGTRAIN_STORE"
"""Environment variable: host:port of the store of this start's ranks. A launcher holds it, and it outlives any rank."""
PROGRESS = "BIGTRAIN_PROGRESS"
"""Environment variable: a file of this node with the newest step whose checkpoint is committed. When the step rises,
the launcher counts restarts from 0 again. It lies in a folder that only this user can use."""

DIED = "BIGTRAIN_DIED"
"""Environment variable: when the launcher noticed that a rank of the last start had died, in seconds since this machine
was started."""


_IGNORED = frozenset(number for number in STOP_SIGNALS if signal.getsignal(number) is signal.SIG_IGN)
"""Stop signals that were ignored when this process began: by nohup, `trap '' HUP`, or a shell's `&`."""


def handle_stop_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    """Handle the stop signals, except those that were ignored when this process began: they stay ignored."""
    for number in STOP_SIGNALS:
        if number not in _IGNORED:
            signal.signal(number, handler)


def launcher_pid() -> int | None:
    """Return the process id of the launcher that started this rank; None where there is none."""
    text = text_of(LAUNCHER)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or not 0 < int(text[:10]) < 2**22:
        warn_once(f"{LAUNCHER}={text} is ignored: it is not the number of a process")
        return None
    return int(text)


def ignore_stop_signals() -> None:
    """Ignore further stop signals: the exit status is decided, and a late signal must not replace it."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def record_death() -> None:
    """Record for the next start's workers when a rank died, which a run's ledger cannot know otherwise."""
    os.environ[DIED] = f"{time.clock_gettime(time.CLOCK_BOOTTIME):.3f}"


End = Literal["hung", "crashed"]


def mark_of(progress: str, end: End, rank: str) -> Path:
    """Return the path of the file that a rank writes before it ends, with the time in nanoseconds.

    A rank that ends a run that hung writes it because a process that waits for a disk does not end, however it is
    killed. A rank that crashes writes it because others lose their connections to it and crash as well: the time shows
    which was first.

    Args:
        progress: the path in `PROGRESS`; the file lies beside it.
        end: why the rank ends.
        rank: its number, or `*` for a pattern.
    """
    return Path(f"{progress}.{end}-{rank}")


def report_end(end: End) -> None:
    """Report to the launcher, if there is one, why this rank is about to end."""
    if progress := _progress_file():
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        with suppress(OSError):  # a full disk must not hide why the rank ends
            write_atomically(mark_of(progress, end, os.environ.get("RANK", "0")), str(now), durable=False)


def report_progress(step: int) -> None:
    """Report to the launcher, if there is one, that the checkpoint of a step is committed."""
    if (progress := _progress_file()) and os.environ.get("LOCAL_RANK", "0") == "0":
        try:
            write_atomically(Path(progress), str(step), durable=False)
        except OSError as error:  # left over from another launcher, or a full disk: the checkpoint itself is committed
            warn_once(f"{PROGRESS}={progress} cannot be written, so restarts are counted from the start: {error}")


def report_step() -> None:
    """Record that this process has done a step of a training: from here on, an error of a disk is a crash."""
    global _has_trained
    _has_trained = True


def has_trained() -> bool:
    """Whether this process has done a step of a training."""
    return _has_trained


_has_trained = False


def _progress_file() -> str | None:
    """The path in `PROGRESS`; None without a launcher, or where its folder belongs to another user."""
    progress = text_of(PROGRESS)
    try:
        return progress if progress and Path(progress).parent.stat().st_uid == os.getuid() else None
    except OSError:
        return None

"""Stopping on request: the signals that end a run early, with a checkpoint."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from types import FrameType

import psutil

from bigtrain.base import (
    LAUNCHER,
    WARNINGS,
    handle_stop_signals,
    ignore_stop_signals,
    launcher_pid,
    text_of,
    warn_once,
)

ONE_ORDER_SECONDS = 5.0
"""Signals within this time of the first count as one."""
PR_SET_PDEATHSIG = 1


class StopRequest:
    """Remembers that a signal asked this process to stop.

    A signal only sets `reason`; the loop sees it between two steps, on all ranks at the same step. A second SIGTERM or
    SIGINT ends the process at once: a commit is atomic, so no committed checkpoint can be damaged. One that follows
    within seconds counts as the first: Slurm, systemd and `kill -- -PGID` signal the ranks as well as the launcher,
    which forwards it. A warning signal never ends the process: the job's end may come during the save that the warning
    asked for.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._ordered_at: float | None = None

    def listen(self) -> None:
        """Install the handlers. A signal that was ignored when this process began stays ignored.

        Until `training_starts` this process ends when its launcher dies: there is nothing to commit, and without the
        launcher the ranks would never meet.
        """
        handle_stop_signals(self._handle)
        _when_launcher_dies(signal.SIGKILL)
        launcher = launcher_pid()
        if launcher is not None and not _runs(launcher):
            if text_of("TORCHELASTIC_RUN_ID"):
                sys.exit("error: the launcher of this process died before it had started")
            warn_once(f"{LAUNCHER}={launcher} is ignored: it is left over from a launcher that has ended")

    def ask(self, reason: str) -> None:
        """Stop between two steps; the first reason stays."""
        self.reason = self.reason or reason

    def training_starts(self) -> None:
        """From here on the death of the launcher is a request to stop."""
        _when_launcher_dies(signal.SIGTERM)

    def ignore(self) -> None:
        """Ignore signals: the run has ended and is committed, and a late signal must not make it fail."""
        ignore_stop_signals()

    def _handle(self, signal_number: int, _frame: FrameType | None) -> None:
        self.ask(signal.Signals(signal_number).name)
        if signal_number in WARNINGS:
            return
        if self._ordered_at is None:
            self._ordered_at = time.monotonic()
        elif time.monotonic() - self._ordered_at > ONE_ORDER_SECONDS:
            os._exit(128 + signal_number)


def _when_launcher_dies(signal_number: signal.Signals) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

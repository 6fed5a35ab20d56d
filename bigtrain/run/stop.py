"""Stopping on request: the signals that end a run early, with a checkpoint."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
PR_SET_PDEATHSIG = 1


class StopRequest:
    """Remembers that a signal asked this process to stop.

    The first signal only sets `reason`; the loop sees it between two steps, on all ranks together. A second one
    leaves at once: a commit is atomic, so nothing that is committed can be harmed.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def listen(self) -> None:
        """Install the handlers, and ask for a signal of our own when the launcher dies."""
        for signal_number in STOP_SIGNALS:
            signal.signal(signal_number, self._handle)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    def ignore(self) -> None:
        """The run is over and committed: a late signal must not turn that into a failure."""
        for signal_number in STOP_SIGNALS:
            signal.signal(signal_number, signal.SIG_IGN)

    def _handle(self, signal_number: int, _frame: FrameType | None) -> None:
        if self.reason is not None:
            os._exit(128 + signal_number)
        self.reason = signal.Signals(signal_number).name

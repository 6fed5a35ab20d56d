"""Exit statuses: why a process ended, and whether a launcher should start it again."""

from __future__ import annotations

import signal

DONE = 0
"""All steps are done."""
WRONG = 1
"""The user's input or environment is wrong; one message says what to change."""
USAGE = 2
"""The command line is wrong: an unknown command or option."""
CRASHED = 3
"""An unexpected error; a traceback shows where."""
HUNG = 70
"""The run hung: no step was done for `guard.hang_seconds`. The log names the rank that held the others up."""
CORRUPTED = 71
"""Weights that must be equal on several ranks were not. The log names the rank."""
STOPPED = 75
"""Stopped on request with a committed checkpoint. The next start goes on from there."""

FINAL = frozenset({DONE, WRONG, USAGE, STOPPED})
"""The statuses after which a launcher does not start a worker again: it would end the same way, or was asked to end."""

_DESCRIPTIONS = {
    CRASHED: "crashed: its traceback is above",
    HUNG: "ended a run that hung",
    CORRUPTED: "ended a run whose copies of the weights differed",
}


def describe(status: int) -> str:
    """Describe how a process ended, as the predicate of a sentence: `rank 1` + `was killed by SIGKILL`.

    Args:
        status: its return code as `subprocess` has it, which is -n where signal n killed it.
    """
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return _DESCRIPTIONS.get(status, f"left with status {status}")


def of_shell(status: int) -> int:
    """Convert a return code of `subprocess` to the exit status of a shell, 128 + n where signal n killed the process.

    Args:
        status: -n where signal n killed the process.
    """
    return 128 - status if status < 0 else status

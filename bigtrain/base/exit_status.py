"""Exit statuses: what a process says by leaving, and whether a launcher should start it again."""

from __future__ import annotations

import signal

DONE = 0
"""All is done."""
WRONG = 1
"""The user's input or environment is wrong; one message says how."""
USAGE = 2
"""The command line is wrong: an unknown command or option."""
CRASHED = 3
"""An error that is not the user's; a traceback says where."""
HUNG = 70
"""No step was done for `guard.hang_seconds`; the log names the rank that held the others up."""
CORRUPTED = 71
"""Weights that must be equal on several ranks were not; the log names the rank."""
STOPPED = 75
"""Stopped on request; what was committed stands, and the next start goes on from there."""

FINAL = frozenset({DONE, WRONG, USAGE, STOPPED})
"""After these a worker has said all there is to say: the same again would end the same, or was not asked for."""

_WORDS = {
    CRASHED: "crashed: its traceback is above, and in the run's logs/",
    HUNG: "ended a run that hung",
    CORRUPTED: "ended a run whose copies of the weights differed",
}


def describe(status: int) -> str:
    """What has become of a process, for people: `rank 1` and these words.

    Args:
        status: as `subprocess` has it: -n where signal n killed it.
    """
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return _WORDS.get(status, f"left with status {status}")


def of_shell(status: int) -> int:
    """The status as a shell has it: 128 + n where signal n killed the process."""
    return 128 - status if status < 0 else status

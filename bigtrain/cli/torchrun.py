"""torchrun, with two things passed through that it keeps to itself: stop signals and exit statuses.

Stock torchrun answers SIGTERM by giving its workers 30 seconds and then killing them, and it leaves with status 1
whatever its workers said. Here a signal is handed on to the workers, which finish their step, commit and leave; and
their status (75: stopped on request, start me again) becomes the status of the launcher. All options are torchrun's::

    python -m bigtrain.cli.torchrun --standalone --nproc-per-node=2 -m bigtrain train CONFIG
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from bigtrain.cli.interface import stay_on_one_interface
from bigtrain.config.errors import BigtrainError

HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
LEFT_TO_TORCHRUN = "SIGQUIT"
EXPECTED_STATUSES = {1, 2, 75}  # after these the worker itself has said why it left


def main(arguments: list[str] | None = None) -> int:
    """Launch the workers and wait for them.

    Returns:
        0, or the exit status of the first worker that failed; 128 + n when signal n killed it.
    """
    for talkative in ("torch.distributed.elastic", "torch.distributed.run"):  # what matters is said below, shorter
        logging.getLogger(talkative).setLevel(logging.CRITICAL)
    for number in HANDED_ON:
        signal.signal(number, _hand_on)
    os.environ["BIGTRAIN_LAUNCHER_PID"] = str(os.getpid())  # by which workers notice that we died: bigtrain/run/stop.py
    try:
        _torchrun([f"--signals-to-handle={LEFT_TO_TORCHRUN}", *(arguments or sys.argv[1:])])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(f"error: rank {rank} was killed by {signal.Signals(-failure.exitcode).name}", file=sys.stderr)
            return 128 - failure.exitcode
        if failure.exitcode not in EXPECTED_STATUSES:
            print(f"error: rank {rank} left with status {failure.exitcode}", file=sys.stderr)
        return failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    except BigtrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _torchrun(arguments: list[str]) -> None:
    parsed = parse_args(arguments)  # type: ignore[no-untyped-call]
    stay_on_one_interface(parsed)
    run(parsed)  # type: ignore[no-untyped-call]


def _hand_on(number: int, _frame: FrameType | None) -> None:
    for worker in psutil.Process(os.getpid()).children():
        worker.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())

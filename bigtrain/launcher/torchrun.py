"""torchrun, with what it keeps to itself passed through, and restarts that know what they are for.

Stock torchrun answers SIGTERM by giving its workers 30 seconds and then killing them, and it leaves with status 1
whatever its workers said. Here a signal is handed on to the workers, which finish their step, commit and leave; and
their status (75: stopped on request, start me again) becomes the status of the launcher.

With --max-restarts N workers that crash, hang or are killed are all started again, on all nodes, and go on from the
newest checkpoint; up to N times without a commit in between. Workers that have said why they leave
(bigtrain.base.exit_status) are not. All options are torchrun's::

    python -m bigtrain.cli.torchrun --standalone --nproc-per-node=2 --max-restarts=3 -m bigtrain train CONFIG
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any

import psutil
import torch.cuda
import torch.distributed.launcher.api
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousError
from torch.distributed.run import parse_args, run

from bigtrain.base.errors import BigtrainError
from bigtrain.base.exit_status import CRASHED, DONE, STOPPED, WRONG, of_shell
from bigtrain.base.launcher_protocol import LAUNCHER, STOP_SIGNALS, ignore_stop_signals
from bigtrain.launcher.agent import Agent, Leave
from bigtrain.launcher.interface import stay_on_one_interface

LEFT_TO_TORCHRUN = "SIGQUIT"
MALLOC_FOR_TENSORS = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=17179869184"
)
"""Keep the memory of tensors that are gone, in huge pages, for those to come: on a CPU every step has the same tensors
again, and glibc would return them to the kernel, which clears each page before it hands it out anew."""


def main(arguments: list[str] | None = None) -> int:
    """Launch the workers and wait for them, and start them again where that is of use.

    Returns:
        0, or the exit status of the worker that the others followed; 128 + n when signal n killed it.
    """
    for talkative in ("torch.distributed.elastic", "torch.distributed.run"):  # what matters is said below, shorter
        logging.getLogger(talkative).setLevel(logging.CRITICAL)
    os.environ[LAUNCHER] = str(os.getpid())  # by which workers notice that we died: bigtrain/train/stop.py
    # The store it would share is not fit for restarts; agent.py has another.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    if not torch.cuda.is_available():
        os.environ.setdefault("GLIBC_TUNABLES", MALLOC_FOR_TENSORS)
    launcher: Any = torch.distributed.launcher.api
    launcher.LocalElasticAgent = Agent
    try:
        for number in STOP_SIGNALS:
            signal.signal(number, _hand_on)
        _torchrun([f"--signals-to-handle={LEFT_TO_TORCHRUN}", *(arguments or sys.argv[1:])])
    except Leave as leaving:
        if message := str(leaving):
            print(f"error: {message}", file=sys.stderr)
        return leaving.status
    except ChildFailedError as error:
        return of_shell(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return 128 + error.sigval
    except BigtrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    except RendezvousClosedError:
        print("error: the job that this node wanted to join is over, or one of its nodes has ended it", file=sys.stderr)
        return CRASHED
    except RendezvousError as error:
        print(f"error: the nodes did not meet: {error}", file=sys.stderr)
        return CRASHED
    finally:
        ignore_stop_signals()
    return DONE


def _torchrun(arguments: list[str]) -> None:
    parsed = parse_args(arguments)  # type: ignore[no-untyped-call]
    stay_on_one_interface(parsed)
    run(parsed)  # type: ignore[no-untyped-call]


def _hand_on(number: int, _frame: FrameType | None) -> None:
    Agent.asked_by.add(number)
    if not Agent.working:  # it is between two starts, or before the first
        raise Leave(STOPPED)
    for worker in psutil.Process(os.getpid()).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())

"""torchrun, with stop signals and exit statuses that are passed on, and restarts that depend on the exit status.

On SIGTERM stock torchrun gives its workers 30 seconds and then kills them, and it ends with status 1 whatever theirs
were. Here a signal is forwarded to the workers, which finish their step, commit and end. Their status (75: stopped on
request) becomes the status of the launcher.

With --max-restarts N, all workers on all nodes are started again when one crashes, hangs or is killed. They go on from
the newest checkpoint, up to N times without a commit in between. Workers that end with a final status
(bigtrain.base.exit_status) are not started again. All options are torchrun's::

    python -m bigtrain.cli.torchrun --standalone --nproc-per-node=2 --max-restarts=3 -m bigtrain train CONFIG
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import uuid
from argparse import Namespace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch.cuda
import torch.distributed.launcher.api
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousError
from torch.distributed.run import config_from_args, parse_args, run

from bigtrain.base import (
    CRASHED,
    DONE,
    LAUNCHER,
    STOPPED,
    USAGE,
    BigtrainError,
    check_faults,
    check_interfaces,
    disk_error,
    handle_stop_signals,
    ignore_stop_signals,
    in_utf8,
    keep_streams,
    known_user,
    of_shell,
    raise_open_files,
    show_controls,
    shows_tracebacks,
)
from bigtrain.launcher.agent import Agent, Leave
from bigtrain.launcher.interface import stay_on_one_interface
from bigtrain.launcher.rendezvous import BACKEND, register

LEFT_TO_TORCHRUN = "SIGQUIT"
MALLOC_FOR_TENSORS = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=17179869184"
)
"""Settings of glibc that keep freed memory, in huge pages, for the next tensors. On a CPU every step has tensors of the
same sizes. glibc would return their memory to the kernel, which clears each page before it hands it out again."""


def main(arguments: list[str] | None = None) -> int:
    """Start the workers, wait for them, and start them again where that may help.

    Returns:
        0, or the exit status of the worker that caused the end; 128 + n where signal n killed it.
    """
    keep_streams()
    if arguments is None:
        in_utf8()
    for verbose in ("torch.distributed.elastic", "torch.distributed.run"):  # one line below replaces their messages
        logging.getLogger(verbose).setLevel(logging.CRITICAL)
    os.environ[LAUNCHER] = str(os.getpid())  # by which workers notice that the launcher died: bigtrain/train/stop.py
    if not torch.cuda.is_available():
        os.environ.setdefault("GLIBC_TUNABLES", MALLOC_FOR_TENSORS)
    launcher: Any = torch.distributed.launcher.api
    launcher.LocalElasticAgent = Agent
    try:
        check_faults()
        raise_open_files()
        handle_stop_signals(_forward)
        with known_user():
            _torchrun([f"--signals-to-handle={LEFT_TO_TORCHRUN}", *(arguments or sys.argv[1:])])
    except Leave as leaving:
        if message := str(leaving):
            print(show_controls(f"error: {message}"), file=sys.stderr)
        return leaving.status
    except ChildFailedError as error:
        return of_shell(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return 128 + error.sigval
    except BigtrainError as error:
        print(show_controls(f"error: {error}"), file=sys.stderr)
        return error.status
    except RendezvousClosedError:
        print("error: this node cannot join the job: it is over, or one of its nodes has ended it", file=sys.stderr)
        return CRASHED
    except RendezvousError as error:
        print(show_controls(f"error: the nodes did not find each other (rendezvous): {error}"), file=sys.stderr)
        return CRASHED
    except OSError as error:  # a folder for temporary files, of torchrun or its agent
        explanation = disk_error(error)
        if explanation is None or shows_tracebacks():
            raise
        print(show_controls(f"error: {explanation}"), file=sys.stderr)
        return explanation.status
    finally:
        ignore_stop_signals()
    return DONE


def _torchrun(arguments: list[str]) -> None:
    parsed = parse_args(arguments)  # type: ignore[no-untyped-call]
    _meet_our_way(parsed)
    if parsed.module and parsed.training_script.partition(".")[0] == "bigtrain":
        os.environ["PYTHONSAFEPATH"] = os.environ.get("PYTHONSAFEPATH") or "1" * _installed()
    check_interfaces("GLOO_SOCKET_IFNAME", *(["NCCL_SOCKET_IFNAME"] if torch.cuda.is_available() else []))
    stay_on_one_interface(parsed)
    try:
        config_from_args(parsed)
    except ValueError as error:
        raise BigtrainError(
            "torchrun does not understand how it is to start the ranks",
            found=str(error).splitlines()[0],
            wanted="the options of torchrun; bigtrain's scripts pass BIGTRAIN_RENDEZVOUS and NPROC to it",
            fix="launch/local.sh --dry-run CONFIG shows the command",
        ).leaving_with(USAGE) from None
    run(parsed)  # type: ignore[no-untyped-call]


def _meet_our_way(parsed: Namespace) -> None:
    """Have the launchers meet by bigtrain/launcher/rendezvous.py, also where torchrun's own ways are asked for."""
    static = parsed.rdzv_backend == "static" and not parsed.rdzv_endpoint
    if parsed.standalone or (static and parsed.master_port is None and parsed.nnodes in ("1", "1:1")):
        # torchrun would meet at the name localhost, which not every container has in /etc/hosts
        parsed.standalone, parsed.rdzv_backend, parsed.rdzv_endpoint = False, "c10d", "127.0.0.1:0"
        parsed.rdzv_id, parsed.nnodes, parsed.rdzv_conf = str(uuid.uuid4()), "1:1", "rank=0"
    elif parsed.rdzv_backend == "static":
        parsed.rdzv_endpoint = parsed.rdzv_endpoint or f"{parsed.master_addr}:{parsed.master_port or 29500}"
        parsed.rdzv_conf = ",".join(part for part in (parsed.rdzv_conf, f"rank={parsed.node_rank}") if part)
    if parsed.rdzv_backend in ("c10d", "static"):
        parsed.rdzv_backend = BACKEND
    register()


def _installed() -> bool:
    """Whether the ranks find bigtrain without looking into the working directory."""
    return not {"", str(Path.cwd())} & set(sys.path)


def _forward(number: int, _frame: FrameType | None) -> None:
    Agent.asked_by.add(number)
    if not Agent.working:  # between two starts, or before the first
        raise Leave(STOPPED)
    for worker in psutil.Process(os.getpid()).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())

"""Ranks by fork, from a process that has imported everything: a start takes a second, not the ten that imports take.

    python benchmarks/forked.py < JOBS      one {"ranks": 2, "arguments": ["train", CONFIG], "log": FILE} a line

Each line on stdout is the list of the ranks' exit statuses. What runs is the ordinary command line in processes of its
own; only torchrun is not there, so whoever starts ranks here has to end those that a dead one leaves behind.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""What has to be in the environment before anything is imported: a process with threads cannot be forked."""
os.environ |= ALONE
PR_SET_PDEATHSIG = 1


def fork_ranks(ranks: int, work: Callable[[], int], log: Path) -> list[int]:
    """Let so many new processes do this work, as torchrun would start them; their ids.

    Args:
        work: returns the exit status.
        log: gets what they print.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    pids = []
    for rank in range(ranks):
        if pid := os.fork():
            pids.append(pid)
        else:
            _become(rank, ranks, port, work, log)
    return pids


def bigtrain(*arguments: str | Path) -> Callable[[], int]:
    """The command line of bigtrain as work. The caller has imported what it needs: see `import_everything`."""

    def work() -> int:
        from bigtrain.cli.main import main

        sys.argv = ["bigtrain", *map(str, arguments)]
        try:
            main()
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else 1
        return 0

    return work


def import_everything() -> None:
    """Import what training needs, so that those who are forked have it."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # noqa: F401

    import bigtrain.cli.main
    import bigtrain.engine.engine
    import bigtrain.train.loop

    assert bigtrain.train.loop and bigtrain.engine.engine
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a process with threads cannot be forked"


def _become(rank: int, ranks: int, port: int, work: Callable[[], int], log: Path) -> NoReturn:
    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_PORT": str(port)}
        handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(handle, stream)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _serve() -> None:
    import_everything()
    for line in sys.stdin:
        job = json.loads(line)
        pids = fork_ranks(job["ranks"], bigtrain(*job["arguments"]), Path(job["log"]))
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


if __name__ == "__main__":
    _serve()

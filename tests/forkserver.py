"""Python that has imported everything: what the tests start is forked from it, and starts in a tenth of a second.

Importing torch and DeepSpeed costs each process four seconds of work, which is most of what a run of twelve steps
takes. So a server imports them once, and whoever asks gets processes that do what `python ARGUMENTS` does, in a
directory, an environment and with output files of their own, to the normal end of the interpreter:

    forkserver.python("-m", "bigtrain", "eval", run)    a command
    forkserver.torchrun(4, "worker.py", directory)      four ranks; one that dies ends the others, as with torchrun

What is about a start itself (imports, launchers, signals to them) has to be tested with processes that are really new.

    forkserver.launcher("2")                                the same as a command line, for what takes a launcher
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

IMPORTED = (
    "torch",
    "torch._dynamo",  # torch.optim imports it at the first step
    "deepspeed",
    "torch.distributed.tensor",
    "bigtrain.cli.main",
    "bigtrain.launcher.torchrun",
    "bigtrain.train.loop",
    "bigtrain.trained.trained",
    "bigtrain.engine.engine",
    "transformers.models.llama.modeling_llama",
)
SINGLE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""A process with threads cannot be forked."""
GRACE = 30.0
"""Seconds that ranks have to leave when one of them has died."""
_PR_SET_PDEATHSIG = 1


# For tests


def python(
    *arguments: Any, cwd: Path | None = None, timeout: float = 200, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """What `python ARGUMENTS` does."""
    return Started(None, arguments, cwd, stdin).finish(timeout)


def torchrun(
    ranks: int, *arguments: Any, cwd: Path | None = None, timeout: float = 200
) -> subprocess.CompletedProcess[str]:
    """What `python -m bigtrain.cli.torchrun --nproc-per-node RANKS ARGUMENTS` does; stderr goes to stdout."""
    return Started(ranks, arguments, cwd).finish(timeout)


class Started:
    """Processes at work; `ranks` None: one that no launcher stands behind."""

    def __init__(self, ranks: int | None, arguments: tuple[Any, ...], cwd: Path | None = None, stdin: str = "") -> None:
        self.arguments = [str(argument) for argument in arguments]
        self._folder = tempfile.TemporaryDirectory(prefix="bigtrain-warm-")
        self._out = Path(self._folder.name, "out")
        self._err = self._out if ranks else Path(self._folder.name, "err")
        read = Path(self._folder.name, "in")
        read.write_text(stdin)
        streams = (read, self._out, self._err)
        self._connection = _ask(address(), ranks, self.arguments, str(cwd or Path.cwd()), streams)
        self._replies = self._connection.makefile()
        self.pid = int(self._replies.readline())
        """Of the process that waits for the ranks, and the number of its group."""

    def send_signal(self, number: int) -> None:
        """To each of the ranks, or to the one process."""
        for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            os.kill(int(pid), number)

    def finish(self, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        """Wait for the end; what takes longer is killed."""
        self._connection.settimeout(timeout)
        try:
            status = int(self._replies.readline())
        except TimeoutError:
            os.killpg(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.arguments, timeout, self._out.read_bytes()) from None
        finally:
            self._connection.close()
        out, err = (path.read_text(errors="replace") for path in (self._out, self._err))
        self._folder.cleanup()
        return subprocess.CompletedProcess(self.arguments, status, out, "" if self._err == self._out else err)


_ENVIRONMENT = {**os.environ, **SINGLE}
"""Of the server: as it is before a test changes it, for modules read some variables when they are imported."""
_server: tuple[subprocess.Popen[bytes], tempfile.TemporaryDirectory[str]] | None = None


def address() -> str:
    """Where the server of this process listens; starts it where there is none."""
    global _server
    if _server is None:
        folder = tempfile.TemporaryDirectory(prefix="bigtrain-warm-server-")
        command = [sys.executable, __file__, f"{folder.name}/socket"]
        _server = subprocess.Popen(command, env=_ENVIRONMENT), folder
    process, folder = _server
    path = Path(folder.name, "socket")
    while not path.exists():
        assert process.poll() is None, "the server of warm processes has died"
        time.sleep(0.05)
    return str(path)


def launcher(ranks: str) -> str:
    """A command line that starts so many ranks when arguments such as `-m bigtrain train CONFIG` are added to it."""
    return shlex.join([sys.executable, __file__, address(), ranks])


def _ask(server: str, ranks: int | None, arguments: list[str], cwd: str, streams: Iterable[Any]) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(server)
    job = {"ranks": ranks, "arguments": arguments, "cwd": cwd, "environment": dict(os.environ)}
    connection.sendall(json.dumps({**job, "streams": [str(path) for path in streams]}).encode() + b"\n")
    return connection


# The server


def serve(path: str) -> None:
    """Fork for everybody who asks, until the parent is gone."""
    _die_with_the_parent()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # without initialising CUDA, which no fork survives
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in IMPORTED:
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a process with threads cannot be forked"
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    Path(f"{path}.new").rename(path)  # there once it answers
    while True:
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            continue
        listener.close()
        _die_with_the_parent()
        os.setsid()
        connection.sendall(f"{os.getpid()}\n".encode())
        job = json.loads(connection.makefile().readline())
        if (ranks := _fork_ranks(job)) is None:
            connection.close()
            _become(job)
        status = _wait_for(ranks)
        connection.sendall(f"{status}\n".encode())
        os._exit(0)


def _fork_ranks(job: dict[str, Any]) -> list[int] | None:
    """Their process ids; None in each of them."""
    world = job["ranks"]
    port = _free_port()
    pids = []
    for rank in range(world or 1):
        if pid := os.fork():
            pids.append(pid)
            continue
        _die_with_the_parent()
        os.environ.clear()
        os.environ.update(job["environment"])
        if "DS_ACCELERATOR" not in os.environ and not Path("/dev/nvidiactl").exists():
            os.environ["DS_ACCELERATOR"] = "cpu"
        if faults := job["environment"].get("BIGTRAIN_FAULT"):
            from bigtrain.base.faults import parse_faults, set_faults

            set_faults(*parse_faults(faults))  # the module reads the variable when it is imported
        if world:
            names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
            os.environ |= dict(zip(names, map(str, (rank, rank, world, world)), strict=True))
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            if world > 1:  # as torchrun does; but one that is alone is more often than not one of many at this moment
                os.environ |= {"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "warm"}
        return None
    return pids


def _free_port() -> int:
    """One that no outgoing connection can take before rank 0 listens."""
    while True:
        port = random.SystemRandom().randint(10_000, 32_000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _become(job: dict[str, Any]) -> None:
    """Be `python ARGUMENTS`; SystemExit and what else it raises goes up to the interpreter."""
    os.chdir(job["cwd"])
    for stream, path in enumerate(job["streams"]):
        handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND if stream else os.O_RDONLY)
        os.dup2(handle, stream)
        os.close(handle)
    first, *rest = job["arguments"]
    if first == "-m":
        sys.argv, sys.path[0] = rest, job["cwd"]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], job["cwd"]
        exec(rest[0], {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = job["arguments"], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")
    sys.exit(0)


def _wait_for(ranks: list[int]) -> int:
    """The status of the first that failed, 128 + n where signal n killed it; the others are stopped then."""
    status, left = 0, set(ranks)
    signal.signal(signal.SIGALRM, lambda *_: [os.kill(pid, signal.SIGKILL) for pid in left])
    while left:
        pid, how = os.wait()
        left.discard(pid)
        code = os.waitstatus_to_exitcode(how)
        if code and not status:
            status = 128 - code if code < 0 else code
            for other in left:
                os.kill(other, signal.SIGTERM)
            signal.setitimer(signal.ITIMER_REAL, GRACE)
    return status


def _die_with_the_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _from_a_shell(server: str, ranks: str, *arguments: str) -> int:
    streams = ("/dev/null", *(f"/proc/{os.getpid()}/fd/{number}" for number in (1, 2)))
    replies = _ask(server, int(ranks), list(arguments), str(Path.cwd()), streams).makefile()
    replies.readline()
    return int(replies.readline())


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        sys.exit(_from_a_shell(*sys.argv[1:]))

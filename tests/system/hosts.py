"""Hosts of one's own: namespaces on one bridge, each with a network, a name, processes and an /etc/hosts of its own.

    host-a  eth0 10.77.0.1 --.
    host-b  eth0 10.77.0.2 --+-- bridge (a namespace too)
    host-c  eth0 10.77.0.3 --'

Each has one core. A host is a process, the first of its PID namespace: when it is killed the kernel kills all others
there, as a power cut does, and takes the network with it. So nothing is left behind, however a test ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

NAMES = ("host-a", "host-b", "host-c")
PORT = 29400
PR_SET_PDEATHSIG = 1


def _die_with_us() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _hold(*namespaces: str) -> tuple[subprocess.Popen[bytes], int]:
    """A process that holds new namespaces, under the process that `unshare` is; the id of the former."""
    command = ["unshare", *namespaces, "--fork", "--kill-child", "sleep", "infinity"]
    holder = subprocess.Popen(command, preexec_fn=_die_with_us)
    while not (children := psutil.Process(holder.pid).children()):
        assert holder.poll() is None, "namespaces cannot be made"
        time.sleep(0.01)
    return holder, children[0].pid


class Host:
    """One of them."""

    def __init__(self, network: Network, number: int) -> None:
        self.name, self.address = NAMES[number], f"10.77.0.{number + 1}"
        self._holder, self.pid = _hold("--net", "--uts", "--pid", "--mount-proc")
        self._network = network
        self._core = sorted(os.sched_getaffinity(0))[number % len(os.sched_getaffinity(0))]
        self._port = f"port{number}"
        network.run("ip", "link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        network.run("ip", "link", "set", self._port, "master", "bridge", "up")
        for command in (
            ["hostname", self.name],
            ["mount", "--bind", str(network.names), "/etc/hosts"],
            ["ip", "link", "set", "lo", "up"],
            ["ip", "address", "add", f"{self.address}/24", "dev", "eth0"],
            ["ip", "link", "set", "eth0", "up"],
        ):
            subprocess.run([*self._enter(), *command], check=True)

    @property
    def alive(self) -> bool:
        return self._holder.poll() is None

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--net", "--uts", "--pid", "--mount"]

    def start(self, *command: object, environment: dict[str, str] | None = None) -> Started:
        """Begin to run a command there."""
        log = self._network.folder / f"{self.name}-{time.monotonic_ns()}.log"
        there = [*self._enter(), f"--wd={Path.cwd()}", "taskset", "--cpu-list", str(self._core)]
        process = subprocess.Popen(
            [*there, *map(str, command)], stdout=log.open("w"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})}, preexec_fn=_die_with_us,
        )  # fmt: skip
        return Started(process, log)

    def kill(self) -> None:
        """SIGKILL to all of its processes at once."""
        self._holder.kill()
        self._holder.wait()
        while psutil.pid_exists(self.pid):  # until the kernel has ended them all
            time.sleep(0.01)

    def cut(self) -> None:
        """Pull its cable: nothing arrives, and nobody is told."""
        self._network.run("ip", "link", "set", self._port, "down")

    def mend(self) -> None:
        """Plug it in again."""
        self._network.run("ip", "link", "set", self._port, "up")


class Started:
    """A command that runs on a host."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """To the command itself, which `nsenter` waits for."""
        for child in psutil.Process(self.process.pid).children():
            child.send_signal(number)

    def finish(self, timeout: float = 120) -> int:
        """Its status."""
        return self.process.wait(timeout)


class Network:
    """The bridge, and the hosts on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = folder / "hosts"
        lines = [f"10.77.0.{number + 1} {name}" for number, name in enumerate(NAMES)]
        self.names.write_text("127.0.0.1 localhost\n" + "\n".join(lines) + "\n")
        self._holder, self._pid = _hold("--net")
        self.run("ip", "link", "add", "bridge", "type", "bridge")
        self.run("ip", "link", "set", "bridge", "up")
        self.hosts: dict[str, Host] = {}

    def run(self, *command: str) -> None:
        """A command in the namespace of the bridge."""
        subprocess.run(["nsenter", f"--target={self._pid}", "--net", *command], check=True)

    def add(self, number: int) -> Host:
        """A host with this number; one that was there before has to be dead."""
        host = Host(self, number)
        self.hosts[host.name] = host
        return host

    def close(self) -> None:
        """End everything."""
        for host in self.hosts.values():
            if host.alive:
                host.kill()
        self._holder.kill()
        self._holder.wait()


def possible() -> str | None:
    """Why such hosts cannot be made here; None where they can."""
    if os.getuid():
        return "namespaces on a bridge need root"
    probe = "ip link add probe type bridge && ip link add one type veth peer name two"
    if subprocess.run(
        ["unshare", "--net", "--uts", "--pid", "--fork", "sh", "-c", probe], capture_output=True
    ).returncode:
        return "this kernel, or the container, does not let us make namespaces with bridges"
    return None


def launcher(nodes: str, master: str, *arguments: object, is_master: bool, restarts: int = 5) -> list[str]:
    """The command by which a host joins the job that meets at `master`; one rank a host."""
    patience = "join_timeout=120,last_call_timeout=4,read_timeout=10,keep_alive_interval=1,keep_alive_max_attempt=3"
    return [
        *(sys.executable, "-m", "bigtrain.cli.torchrun", f"--nnodes={nodes}", "--nproc-per-node=1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint={master}:{PORT}", "--rdzv-id=hosts"),
        *(f"--rdzv-conf=is_host={int(is_master)},{patience}", f"--max-restarts={restarts}"),
        *map(str, arguments),
    ]


def skip_unless_possible() -> None:
    """Skip, with the reason; fail in CI, which has to have them."""
    if reason := possible():
        if os.environ.get("BIGTRAIN_REQUIRE"):
            pytest.fail(reason)
        pytest.skip(reason)

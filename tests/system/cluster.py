"""A Slurm of one's own: munged, slurmctld and two slurmd on this machine, with everything they need in one folder.

All of it, and every job, lives in a PID namespace: when its first process is killed the kernel kills the rest, so
nothing is left behind, however a test ends.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REQUEUE_SECONDS = 10
"""Slurm starts a job again no sooner than its credentials expire: 2 minutes, unless it is told otherwise. A node that
takes longer to begin refuses the job."""
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=0
SlurmctldDebug=verbose
SlurmdDebug=verbose
BatchStartTimeout=300
MailProg=/bin/true
{nodes}
PartitionName=everyday Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""
DAEMONS = """
{munged} --foreground --force --key-file={folder}/munge.key --socket={folder}/munge.socket \\
  --pid-file={folder}/munge.pid --log-file={folder}/munge.log --seed-file={folder}/munge.seed &
until [ -S {folder}/munge.socket ]; do sleep 0.05; done
{slurmctld} -D -f {folder}/slurm.conf &
for node in {names}; do {slurmd} -D -N $node -f {folder}/slurm.conf & done
wait
"""
PR_SET_PDEATHSIG = 1


class Slurm:
    """The cluster, from `start` to `stop`."""

    def __init__(self, programs: dict[str, str], nodes: int = 2) -> None:
        """Start it, with nodes n1, n2, ... of one CPU each."""
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # the name of a socket may have 107 characters
        names = [f"n{number}" for number in range(1, nodes + 1)]
        for name in ("state", *(f"spool-{node}" for node in names)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(64))
        key.chmod(0o600)
        host = socket.gethostname().partition(".")[0]
        ports = free_ports(1 + nodes)
        lines = (
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=500"
            for name, port in zip(names, ports[1:], strict=True)
        )
        configuration = CONFIGURATION.format(
            host=host, folder=self.folder, ports=ports, requeue=REQUEUE_SECONDS, nodes="\n".join(lines)
        )
        (self.folder / "slurm.conf").write_text(configuration)
        self.environment = {**os.environ, "SLURM_CONF": f"{self.folder}/slurm.conf", "PYTHON": sys.executable}
        script = DAEMONS.format(folder=self.folder, names=" ".join(names), **programs)
        self._output = (self.folder / "daemons.log").open("w")
        self._daemons = subprocess.Popen(
            ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child", "bash", "-c", script],
            env=self.environment, stdout=self._output, stderr=subprocess.STDOUT,
            preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # unshare ignores SIGTERM
        )  # fmt: skip
        try:
            self.wait_until(lambda: self("sinfo", "--noheader", "--states=idle", "--format=%D") == str(nodes), 60)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything."""
        self._daemons.kill()
        self._daemons.wait(30)
        self._output.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __call__(self, *command: str | Path) -> str:
        """One of Slurm's commands; returns what it says, the complaint where it fails."""
        done = subprocess.run(
            [str(part) for part in command], env=self.environment, capture_output=True, text=True, timeout=60
        )
        return (done.stdout if done.returncode == 0 else done.stderr).strip()

    def log_of(self, number: str) -> list[str]:
        """What the daemons wrote down about a job."""
        named = re.compile(rf"JobId={number}\b|[Jj]ob {number}\b|\[{number}\.")
        return [
            f"{log.stem}: {line}"
            for log in sorted(self.folder.glob("slurm*.log"))
            for line in log.read_text().splitlines()
            if named.search(line)
        ]

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows about a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self("scontrol", "--oneliner", "show", "job", number)))

    def wait_for(self, number: str, *states: str, timeout: float = 240) -> dict[str, str]:
        """Until the job is in one of these states."""
        self.wait_until(lambda: self.job(number).get("JobState") in states, timeout, lambda: str(self.job(number)))
        return self.job(number)

    def wait_until(self, holds: Callable[[], bool], timeout: float, said: Callable[[], str] = lambda: "") -> None:
        """Until something holds; tells the daemons' last words if it never does."""
        end = time.monotonic() + timeout
        while not holds():
            if time.monotonic() > end:
                logs = "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in self.folder.glob("*.log"))
                raise AssertionError(f"not within {timeout} s: {said()}\n{logs}")
            time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody uses at the moment."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports

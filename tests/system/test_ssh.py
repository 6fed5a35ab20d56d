"""Machines that ssh reaches: two sshd on loopback addresses of their own, with a core each, run one job together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.system.cluster import free_ports
from tests.system.run_sandbox import ROOT, STATUS_STOPPED, RunSandbox, curve, finish

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
HOSTS = ("127.0.0.2", "127.0.0.3")
SERVER = """
Port {port}
ListenAddress {host}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
"""
CLIENT = """
Host *
  Port {port}
  IdentityFile {folder}/user
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  BatchMode yes
"""


@pytest.fixture(scope="module")
def ssh(tmp_path_factory, require_command):
    """The command that reaches both machines."""
    folder = tmp_path_factory.mktemp("ssh")
    sshd = require_command("/usr/sbin/sshd")
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (port,) = free_ports(1)
    (folder / "client").write_text(CLIENT.format(folder=folder, port=port))
    cores = sorted(os.sched_getaffinity(0))
    servers = []
    for i, host in enumerate(HOSTS):
        (folder / host).write_text(SERVER.format(folder=folder, port=port, host=host))
        core = cores[i % len(cores)]  # ranks take the cores they may use: one, as beside each other on one machine
        servers.append(
            subprocess.Popen(
                [sshd, "-D", "-e", "-f", str(folder / host)],
                stderr=(folder / f"{host}.log").open("w"),
                preexec_fn=lambda core=core: os.sched_setaffinity(0, {core}),
            )
        )
    yield f"ssh -F {folder}/client"
    for server in servers:
        for process in [*psutil.Process(server.pid).children(recursive=True), server]:
            process.kill()
        server.wait()


def start(ssh: str, sandbox: RunSandbox, preflight: str = "--no-doctor") -> subprocess.Popen:
    command = [
        str(ROOT / "launch/ssh.sh"),
        "--processes",
        "1",
        preflight,
        ",".join(HOSTS),
        str(sandbox.config),
    ]
    environment = {**os.environ, "BIGTRAIN_SSH": ssh, "PYTHON": sys.executable}
    environment |= {"BIGTRAIN_FAULT": "slow,rank=*,at=step,delay=0.5", "BIGTRAIN_PORT": str(free_ports(1)[0])}
    return subprocess.Popen(
        command, env=environment, cwd=sandbox.directory, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def at_work(sandbox: RunSandbox) -> list[psutil.Process]:
    """The processes of a run, on whichever machine."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(sandbox.config) in (process.info["cmdline"] or ()) and "bigtrain" in process.info["cmdline"]:
            found.append(process)
    return found


def test_stopped_or_cut_off_machines_commit_and_go_on(ssh, sandbox, undisturbed):
    """Stopped by signal or cut off the machines commit and the next start goes on."""
    first = start(ssh, sandbox)
    sandbox.wait_for_step(3)
    first.terminate()
    status, said = finish(first)
    assert status == STATUS_STOPPED, said
    assert "[127.0.0.2] " in said, "what machines say has their name before it"

    second = start(ssh, sandbox)
    sandbox.wait_for_step(sandbox.metrics()[-1]["step"] + 2)
    second.kill()  # as when the machine is lost on which it was started
    second.wait()
    psutil.wait_procs(at_work(sandbox), timeout=60)
    assert not at_work(sandbox)
    stopped_at = sandbox.metrics()[-1]["step"]
    assert stopped_at < 12
    assert (sandbox.run / f"checkpoints/step-{stopped_at:08d}/manifest.json").is_file()

    status, said = finish(start(ssh, sandbox, preflight="--doctor"), timeout=400)
    assert status == 0 and "2 rank(s) on" in said, said
    assert curve(sandbox.metrics()) == curve(undisturbed.metrics())


def test_a_machine_that_fails_is_named_and_the_others_do_not_wait_for_it(ssh, sandbox):
    training = start(ssh, sandbox)
    sandbox.wait_for_step(3)
    (launcher,) = [process for process in at_work(sandbox) if "--rdzv-conf=rank=1" in " ".join(process.cmdline())]
    os.kill(launcher.pid, signal.SIGKILL)
    began = time.monotonic()
    status, said = finish(training, timeout=200)
    assert status == 128 + signal.SIGKILL and f"error: {HOSTS[1]}: ended with status {status}" in said, said
    assert f"error: {HOSTS[0]}" not in said, said
    assert time.monotonic() - began < 120

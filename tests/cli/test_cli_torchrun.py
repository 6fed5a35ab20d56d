"""The launcher passes on what stock torchrun keeps to itself: exit statuses and stop signals."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

LAUNCHER = [sys.executable, "-m", "bigtrain.cli.torchrun", "--standalone", "--nproc-per-node=2"]


def launch(script: str, tmp_path) -> subprocess.Popen:
    (tmp_path / "worker.py").write_text(script)
    return subprocess.Popen(
        [*LAUNCHER, str(tmp_path / "worker.py")],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.parametrize("status", [0, 1, 75, 9])
def test_the_status_of_the_workers_is_the_status_of_the_launcher(tmp_path, status):
    process = launch(f"raise SystemExit({status})", tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert ("left with status" in output) == (status == 9), output


def test_a_worker_killed_by_a_signal_is_named(tmp_path):
    process = launch("import os, signal\nif os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert f"rank 1 on {socket.gethostname()} was killed by SIGKILL" in output


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_stop_signal_reaches_the_workers_who_may_take_their_time(tmp_path, stop_signal):
    script = (
        "import os, signal, time\n"
        "def stop(number, frame):\n    time.sleep(1); raise SystemExit(75)\n"
        f"signal.signal({int(stop_signal)}, stop)\n"
        "open('ready-' + os.environ['RANK'], 'w').close()\n"
        "time.sleep(60)\n"
    )
    process = launch(script, tmp_path)
    end = time.monotonic() + 60
    while not all((tmp_path / f"ready-{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, stop_signal)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output

"""The launcher passes on what stock torchrun keeps to itself: exit statuses and stop signals."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

TWO_RANKS = ("--standalone", "--nproc-per-node=2")


def launch(script: str, tmp_path, *options: str) -> subprocess.Popen:
    (tmp_path / "worker.py").write_text(script)
    return subprocess.Popen(
        [sys.executable, "-m", "bigtrain.cli.torchrun", *(options or TWO_RANKS), str(tmp_path / "worker.py")],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_until_ready(process: subprocess.Popen, tmp_path) -> None:
    end = time.monotonic() + 60
    while not all((tmp_path / f"ready-{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)


def two_nodes(script: str, tmp_path) -> tuple[list[int], list[str]]:
    """The statuses of two launchers of a worker each, and what they said; the first holds the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}"
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", meeting]
    nodes = [launch(script, tmp_path, *options, f"--rdzv-conf=is_host={is_host}") for is_host in (1, 0)]
    said = [node.communicate(timeout=60)[0] for node in nodes]
    return [node.returncode for node in nodes], said


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


def test_a_worker_that_dies_just_after_the_launcher_has_looked_is_started_again_as_any_other(tmp_path):
    (tmp_path / "worker.py").write_text("import time\ntime.sleep(1)\n")
    (tmp_path / "launcher.py").write_text(
        "import os, sys\n"
        "from bigtrain.launcher import torchrun\n"
        "look, struck = torchrun.Agent._ended, []\n"
        "def and_then_one_dies(self, group):\n"
        "    seen = look(self, group)\n"
        "    if not struck:\n"
        "        struck.append(self._pcontext.subprocess_handlers[1].proc)\n"
        "        struck[0].kill()\n"
        "        os.waitid(os.P_PID, struck[0].pid, os.WEXITED | os.WNOWAIT)\n"
        "    return seen\n"
        "torchrun.Agent._ended = and_then_one_dies\n"
        "sys.exit(torchrun.main())\n"
    )
    command = [sys.executable, str(tmp_path / "launcher.py"), *TWO_RANKS, "--max-restarts=1"]
    done = subprocess.run([*command, str(tmp_path / "worker.py")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "was killed by SIGKILL: restart 1" in done.stderr, done.stderr


def test_of_two_workers_that_crash_the_first_is_named_though_it_leaves_last(tmp_path):
    script = (
        "import os, time\n"
        "from bigtrain.base.launcher_protocol import report_end\n"
        "first = os.environ['RANK'] == '1'\n"
        "time.sleep(0 if first else 0.5); report_end('crashed'); time.sleep(1 if first else 0); raise SystemExit(3)\n"
    )
    process = launch(script, tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert f"rank 1 on {socket.gethostname()} crashed" in output and "rank 0 on" not in output, output


def test_a_node_whose_worker_was_killed_speaks_before_one_whose_worker_crashed_of_it(tmp_path):
    script = (
        "import os, signal, time\n"
        "if os.environ['RANK'] == '0': raise SystemExit(3)\n"
        "time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    statuses, said = two_nodes(script, tmp_path)
    assert statuses == [128 + signal.SIGKILL] * 2, said


def test_two_nodes_leave_without_a_word_though_the_one_with_the_store_is_first(tmp_path):
    script = "import os, time\ntime.sleep(0 if os.environ['RANK'] == '0' else 1.5)\nraise SystemExit(75)\n"
    assert two_nodes(script, tmp_path) == ([75, 75], ["", ""])


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_that_workers_do_not_listen_to_yet_is_a_stop_on_request(tmp_path, stop_signal):
    process = launch("import os, time\nopen('ready-' + os.environ['RANK'], 'w').close()\ntime.sleep(60)\n", tmp_path)
    wait_until_ready(process, tmp_path)
    os.kill(process.pid, stop_signal)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (75, "")


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
    wait_until_ready(process, tmp_path)
    os.kill(process.pid, stop_signal)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output

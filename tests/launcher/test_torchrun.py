"""The launcher passes on what stock torchrun does not: exit statuses and stop signals."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import forkserver

TWO_RANKS = ("--standalone", "--nproc-per-node=2")


class Launcher(forkserver.Started):
    """The launcher in a forked process, with the workers that it starts: what the tests use of `subprocess.Popen`."""

    returncode: int | None = None

    def communicate(self, timeout: float) -> tuple[str, str]:
        done = self.finish(timeout)
        self.returncode = done.returncode
        return done.stdout + done.stderr, ""


def launch(script: str, tmp_path, *options: str) -> Launcher:
    (tmp_path / "worker.py").write_text(script)
    arguments = ("-m", "bigtrain.cli.torchrun", *(options or TWO_RANKS), tmp_path / "worker.py")
    return Launcher(None, arguments, tmp_path)


def wait_until_ready(tmp_path) -> None:
    end = time.monotonic() + 60
    while not all((tmp_path / f"ready-{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < end
        time.sleep(0.05)


def two_nodes(script: str, tmp_path) -> tuple[list[int], list[str]]:
    """The statuses and outputs of two launchers with one worker each; the first holds the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}"
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", meeting]
    nodes = [launch(script, tmp_path, *options, f"--rdzv-conf=is_host={is_host}") for is_host in (1, 0)]
    outputs = [node.communicate(timeout=60)[0] for node in nodes]
    return [node.returncode for node in nodes], outputs


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


def test_a_worker_that_dies_just_after_a_look_is_started_again(tmp_path):
    """It is started again like any other, although the launcher saw all workers alive a moment before."""
    (tmp_path / "worker.py").write_text("import time\ntime.sleep(1)\n")
    (tmp_path / "launcher.py").write_text(
        "import os, sys\n"
        "from bigtrain.launcher import torchrun\n"
        "look, killed = torchrun.Agent._ended, []\n"
        "def look_then_kill_one(self, group):\n"
        "    ended = look(self, group)\n"
        "    if not killed:\n"
        "        killed.append(self._pcontext.subprocess_handlers[1].proc)\n"
        "        killed[0].kill()\n"
        "        os.waitid(os.P_PID, killed[0].pid, os.WEXITED | os.WNOWAIT)\n"
        "    return ended\n"
        "torchrun.Agent._ended = look_then_kill_one\n"
        "sys.exit(torchrun.main())\n"
    )
    command = [sys.executable, str(tmp_path / "launcher.py"), *TWO_RANKS, "--max-restarts=1"]
    done = subprocess.run([*command, str(tmp_path / "worker.py")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "was killed by SIGKILL: restart 1" in done.stderr, done.stderr


def test_of_two_workers_that_crash_the_first_is_named_though_it_ends_last(tmp_path):
    script = (
        "import os, time\n"
        "from bigtrain.base.launcher_protocol import report_end\n"
        "first = os.environ['RANK'] == '1'\n"
        "def wait_for(name):\n"
        "    while not os.path.exists(name): time.sleep(0.02)\n"
        "if not first: wait_for('first')\n"
        "report_end('crashed')\n"
        "open('first' if first else 'second', 'w').close()\n"
        "if first: wait_for('second'); time.sleep(0.5)\n"  # the launcher sees the other's end before this one's
        "raise SystemExit(3)\n"
    )
    process = launch(script, tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert f"rank 1 on {socket.gethostname()} crashed" in output and "rank 0 on" not in output, output


def test_the_node_of_a_killed_worker_decides_for_that_of_a_crashed_one(tmp_path):
    """A node whose worker was killed decides for all, not one whose worker crashed because of it."""
    script = (
        "import os, signal, time\n"
        "if os.environ['RANK'] == '1':\n"
        "    open('ready', 'w').close(); time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)\n"
        "while not os.path.exists('ready'): time.sleep(0.02)\n"
        "raise SystemExit(3)\n"
    )
    statuses, outputs = two_nodes(script, tmp_path)
    assert statuses == [128 + signal.SIGKILL] * 2, outputs


def test_two_nodes_stop_without_output_though_the_store_ends_first(tmp_path):
    """A stop on request prints nothing, although the node that holds the store ends before the other."""
    script = "import os, time\ntime.sleep(0 if os.environ['RANK'] == '0' else 1.5)\nraise SystemExit(75)\n"
    assert two_nodes(script, tmp_path) == ([75, 75], ["", ""])


def numbered_nodes(script: str, tmp_path, numbers: list[int], *options: str) -> tuple[list[int], list[str]]:
    """The statuses and outputs of launchers with a number each, by torchrun's options for a static rendezvous."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = [
            "--nnodes=2",
            "--nproc-per-node=1",
            "--master-addr=127.0.0.1",
            f"--master-port={free.getsockname()[1]}",
        ]
    nodes = [launch(script, tmp_path, *meeting, f"--node-rank={number}", *options) for number in numbers]
    outputs = [node.communicate(timeout=100)[0] for node in nodes]
    return [node.returncode for node in nodes], outputs


def test_numbered_nodes_start_again_together_after_a_death(tmp_path):
    """A rank that is killed on one node has all nodes meet again, with the same ranks; twice, and then it is done."""
    script = (
        "import os, signal, time\n"
        "rank, start = os.environ['RANK'], int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
        "assert rank == os.environ['GROUP_RANK']\n"
        "open(f'start-{start}-{rank}', 'w').close()\n"
        "while not all(os.path.exists(f'start-{start}-{each}') for each in (0, 1)): time.sleep(0.02)\n"
        "if start < 2:\n"
        "    if rank == str(1 - start): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    time.sleep(60)\n"
    )
    statuses, outputs = numbered_nodes(script, tmp_path, [1, 0], "--max-restarts=3")
    assert statuses == [0, 0], outputs
    started = sorted(path.name for path in tmp_path.glob("start-*"))
    assert started == [f"start-{start}-{rank}" for start in (0, 1, 2) for rank in (0, 1)]


def test_a_node_that_never_comes_is_named_by_its_number(tmp_path):
    statuses, outputs = numbered_nodes("", tmp_path, [0], "--rdzv-conf=join_timeout=2")
    assert statuses == [3]
    assert outputs == [
        "error: the nodes did not find each other (rendezvous): 1 of 2 nodes came within 2 s; missing: node 1\n"
    ]


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_before_workers_handle_it_is_a_stop_on_request(tmp_path, stop_signal):
    process = launch("import os, time\nopen('ready-' + os.environ['RANK'], 'w').close()\ntime.sleep(60)\n", tmp_path)
    wait_until_ready(tmp_path)
    process.send_signal(stop_signal)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (75, "")


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_stop_signal_reaches_the_workers_which_may_take_their_time(tmp_path, stop_signal):
    script = (
        "import os, signal, time\n"
        "def stop(number, frame):\n    time.sleep(1); raise SystemExit(75)\n"
        f"signal.signal({int(stop_signal)}, stop)\n"
        "open('ready-' + os.environ['RANK'], 'w').close()\n"
        "time.sleep(60)\n"
    )
    process = launch(script, tmp_path)
    wait_until_ready(tmp_path)
    process.send_signal(stop_signal)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output


def test_the_marks_of_ranks_lie_where_no_other_user_can_write(tmp_path):
    """They are in a new folder of this user alone, which is gone when the launcher has ended."""
    script = (
        "import os, pathlib\n"
        "from bigtrain.base.launcher_protocol import PROGRESS, report_end, report_progress\n"
        "report_progress(3); report_end('crashed')\n"
        "folder = pathlib.Path(os.environ[PROGRESS]).parent\n"
        "print(folder, oct(folder.stat().st_mode), sorted(path.name for path in folder.iterdir()), flush=True)\n"
    )
    output, _ = launch(script, tmp_path, "--standalone", "--nproc-per-node=1").communicate(timeout=60)
    folder, mode, names = output.split(maxsplit=2)
    assert mode == "0o40700" and names.strip() == "['progress', 'progress.crashed-0']"
    assert not Path(folder).exists()

"""Closed, full or abandoned standard streams end no run; a reader that has left ends a command quietly."""

import signal
import subprocess
import sys

import pytest

RUN = "from bigtrain.base import keep_streams; keep_streams(outlive_stdout={outlives}); import sys, os\n"
WORK = RUN + (
    "file = open('work', 'w')\n"
    "for _ in range(3): print('x' * 100_000, flush=True); print('y' * 100_000, file=sys.stderr, flush=True)\n"
    "file.write(str(file.fileno()))\n"
)


def python(code: str, redirections: str, cwd) -> int:
    command = f'"$0" -c "$1" {redirections}; exit "${{PIPESTATUS[0]}}"'
    return subprocess.run(["bash", "-c", command, sys.executable, code], cwd=cwd, timeout=60).returncode


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | true"])
def test_a_run_goes_on_whatever_became_of_its_streams(streams, tmp_path):
    """It does its work to the end, and no file that it opens gets the number of a standard stream."""
    assert python(WORK.format(outlives=True), streams, tmp_path) == 0
    assert int((tmp_path / "work").read_text()) > 2


@pytest.mark.parametrize(
    ("streams", "status"), [("| true", 128 + signal.SIGPIPE), (">/dev/full 2>&-", 1), (">&- 2>&-", 0)]
)
def test_a_command_whose_results_nobody_reads_ends_quietly(streams, status, tmp_path):
    assert (
        python(WORK.format(outlives=False), f"{streams} 2>errors" if streams == "| true" else streams, tmp_path)
        == status
    )


def test_letters_that_the_encoding_lacks_are_shown_escaped():
    code = RUN.format(outlives=False) + "print('\\udc80\\u20ac')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == b"\\udc80\\u20ac\n", done.stderr


def test_a_user_s_modules_in_the_working_directory_replace_nothing(tmp_path):
    """A user's secrets.py, torch.py and others are not what bigtrain and its launcher import."""
    for name in ("secrets", "statistics", "random", "tokenizers", "wandb", "torch", "typing", "yaml"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('this is the user\\'s own')\n")
    for command in (["-m", "bigtrain", "config", "explain", "run_dir"], ["-m", "bigtrain.cli.torchrun", "--help"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


def test_a_signal_that_was_ignored_at_the_start_stays_ignored():
    """nohup, `trap '' HUP` and a shell's `&` are respected, and TERM still asks for a stop."""
    code = (
        "import os, signal, sys\nfrom bigtrain.base import handle_stop_signals\n"
        "handle_stop_signals(lambda number, frame: print(signal.Signals(number).name))\n"
        "for name in ('HUP', 'INT', 'USR1', 'TERM'): os.kill(os.getpid(), getattr(signal, 'SIG' + name))\n"
    )
    for ignored, wanted in (
        ("HUP INT USR1", ["SIGTERM"]),
        ("HUP INT", ["SIGUSR1", "SIGTERM"]),
    ):
        done = subprocess.run(
            ["bash", "-c", f"trap '' {ignored}; exec \"$0\" -c \"$1\"", sys.executable, code],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.stdout.split() == wanted, done.stderr

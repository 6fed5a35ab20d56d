"""One writer at a time, with flock and without it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.base.locks import FileLock, LockHeldError, LockOwner

HOLD = """
import sys
from pathlib import Path
from bigtrain.base import FileLock, LockHeldError
lock = FileLock(Path(sys.argv[1]))
try:
    lock.acquire()
except LockHeldError as held:
    sys.exit(f"held by {held.holder}; {held.fix}")
print(lock.without_flock, lock.is_held(), flush=True)
sys.stdin.readline()
lock.release()
"""


@pytest.fixture
def hold(require_command: Callable[[str], str], tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a process that takes a lock and holds it until its input ends, with flock or without."""
    (tmp_path / "hold.py").write_text(HOLD)

    def start(path: Path, *, flock: bool = False) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "hold.py"), str(path)]
        if not flock:
            require_command("strace")
            traced = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e", "inject=flock:error=ENOSYS"]
            command = ["strace", *traced, *command]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    return start


def test_without_flock_a_second_process_is_kept_out(tmp_path: Path, hold) -> None:
    """Also one that has flock; and the file is gone when the holder has ended in order."""
    path = tmp_path / "lock"
    first = hold(path)
    assert first.stdout.readline() == "True False\n"
    second = hold(path)
    _, refused = second.communicate(timeout=60)
    owner = json.loads((tmp_path / "lock.owner").read_text())
    assert second.returncode == 1 and f"process {owner['pid']} on" in refused and "lock.owner" in refused
    with pytest.raises(LockHeldError):
        FileLock(path).acquire()
    assert FileLock(path).is_held()
    first.communicate("\n", timeout=60)
    assert not (tmp_path / "lock.owner").exists() and not FileLock(path).is_held()


def test_a_killed_holder_of_this_machine_is_followed_at_once(tmp_path: Path, hold) -> None:
    path = tmp_path / "lock"
    first = hold(path)
    first.stdout.readline()
    os.kill(json.loads((tmp_path / "lock.owner").read_text())["pid"], 9)
    first.communicate(timeout=60)
    assert (tmp_path / "lock.owner").exists() and not FileLock(path).is_held()
    lock = FileLock(path)
    lock.acquire()
    assert not (tmp_path / "lock.owner").exists()
    lock.release()


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({}, False),
        ({"started": 1}, True),
        ({"pid": 2**22 + 1}, True),
        ({"boot": "another", "machine": "this"}, True),
        ({"boot": "another", "host": "elsewhere"}, False),
        ({"host": "elsewhere", "pid": 2**22 + 1}, False),
        ({"pids": "pid:[1]", "pid": 2**22 + 1}, False),
    ],
)
def test_only_an_owner_that_has_certainly_ended_is_replaced(change: dict, gone: bool, monkeypatch) -> None:
    monkeypatch.setattr("bigtrain.base.locks._machine", lambda: "this")
    owner = LockOwner(**{**vars(LockOwner.this_process()), **change})
    assert owner.is_gone() is gone


def test_a_lock_with_flock_ends_with_its_process(tmp_path: Path, hold) -> None:
    path = tmp_path / "lock"
    first = hold(path, flock=True)
    assert first.stdout.readline() == "False False\n"
    with pytest.raises(LockHeldError, match=f"process {first.pid} on"):
        FileLock(path).acquire()
    first.kill()
    first.communicate(timeout=60)
    FileLock(path).acquire(patience=60)


def test_an_owner_file_that_cannot_be_read_keeps_others_out(tmp_path: Path) -> None:
    (tmp_path / "lock.owner").write_text('{"host": ')
    with pytest.raises(LockHeldError) as held:
        FileLock(tmp_path / "lock").acquire()
    assert f"rm {tmp_path}/lock.owner" in str(held.value.fix)

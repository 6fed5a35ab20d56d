"""A disk that does not answer holds a run up, and neither the watchdog nor the launcher."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.run_sandbox import RunSandbox, curve, finish

MIB = 2**20


@pytest.fixture
def freezable(tmp_path: Path, require_command) -> Iterator[Path]:
    """A file system of its own, whose writers can be made to wait."""
    for program in ("mkfs.ext4", "fsfreeze"):
        require_command(program)
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(256 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root and a loop device")
    yield disk
    subprocess.run(["fsfreeze", "--unfreeze", str(disk)], capture_output=True)
    for _ in range(50):
        if not subprocess.run(["umount", str(disk)], capture_output=True).returncode:
            return
        time.sleep(0.2)
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.long
def test_a_disk_that_does_not_answer_is_a_named_hang(
    undisturbed: RunSandbox, sandbox: RunSandbox, freezable: Path
) -> None:
    """A disk that does not answer is a hang with a name and the run goes on when it does."""
    run = freezable / "run"
    overrides = [f"run_dir={run}", "guard.hang_seconds=5"]
    slow = "slow,rank=*,at=step,delay=0.5"  # so that there is time to freeze it in
    training = sandbox.start_training(2, *overrides, restarts=3, faults=slow)
    sandbox.wait_for_step(3, run)
    subprocess.run(["fsfreeze", "--freeze", str(freezable)], check=True)
    assert training.stdout is not None
    began, told = time.monotonic(), []
    for line in training.stdout:
        told.append(line)
        if ": restart 1," in line:
            break
    seconds = time.monotonic() - began
    subprocess.run(["fsfreeze", "--unfreeze", str(freezable)], check=True)
    status, output = finish(training, timeout=300)
    (verdict,) = [line for line in told if "no step in" in line]
    assert "rank 0 on" in verdict and "waiting for a disk" in verdict, verdict
    assert seconds < 180  # five of the bound, then the launcher's patience; on a loaded machine
    assert status == 0, output
    assert curve(sandbox.metrics(run)) == curve(undisturbed.metrics())

"""Kill -9 at random instants of build and of training; `benchmarks/kills.py` does the same two hundred times each."""

import json
import subprocess
import sys

import pytest

from tests.system.run_sandbox import ROOT


def killed(part: str, kills: int, out) -> dict:
    other = {"build": "training", "training": "build"}[part]
    command = [sys.executable, ROOT / "benchmarks/kills.py", f"--{part}={kills}", f"--{other}=0", "--small"]
    done = subprocess.run([*command, f"--out={out}"], capture_output=True, text=True, timeout=250, cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((out / "kills.json").read_text())[part]
    assert result["kills"] == kills
    assert result["wrong"] == 0
    return result


@pytest.mark.slow
def test_a_build_killed_at_random_gives_the_same_bytes(tmp_path):
    """A build killed at random instants ends with the bytes of an undisturbed one."""
    result = killed("build", 2, tmp_path)
    assert result["builds finished, compared and verified"] and result["files compared in each"] > 10


@pytest.mark.long  # test_stop.py kills a training at a random step
def test_training_killed_at_random_instants_takes_every_sample_once(tmp_path):
    result = killed("training", 2, tmp_path)
    assert result["samples"] == 8 * result["steps"] == 1200 * result["runs finished and compared"]
    assert result["steps whose digest `data where` recomputed"] == result["runs finished and compared"]

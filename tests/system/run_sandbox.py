"""Real runs in real processes: a small corpus, a small model, the ordinary commands."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from bigtrain.base.faults import FAULT
from bigtrain.rundir.json_lines import read_json_lines
from bigtrain.rundir.records import read_metrics
from tests import forkserver

ROOT = Path(__file__).parents[2]
CLI = [sys.executable, "-m", "bigtrain"]
STATUS_STOPPED = 75


def small_settings(directory: Path) -> dict:
    """A run of 12 steps that takes a few seconds; the corpus is a corner of the standard library."""
    return {
        "run_dir": str(directory / "run"),
        "model": {
            "family": "llama",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 128,
            "vocab_size": 1024,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
        },
        "data": {
            "dir": str(directory / "data"),
            "sequence_length": 64,
            "tokenizer": {"vocab_size": 1024},
            "sources": [
                {"name": "json", "kind": "text", "path": sysconfig.get_path("stdlib") + "/json/*.py", "weight": 0.7},
                {"name": "email", "kind": "text", "path": sysconfig.get_path("stdlib") + "/email/*.py", "weight": 0.3},
            ],
            "validation": {"fraction": 0.15},
            "workers": 1,
        },
        "train": {"steps": 12, "global_batch_size": 8, "micro_batch_size": 2, "seed": 3},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"name": "wsd", "warmup_steps": 2, "decay_steps": 4},
        "engine": {"zero_stage": 2, "precision": "bf16"},
        "checkpoint": {"every_steps": 4},
        "evaluate": {"every_steps": 6, "max_sequences": 8},
        "tracking": {"wandb": "disabled", "log_every_steps": 1},
    }


@dataclass
class RunSandbox:
    """A directory with a configuration, and the commands to use on it."""

    directory: Path
    config: Path

    @property
    def run(self) -> Path:
        return self.directory / "run"

    def bigtrain(self, *arguments: str | Path, timeout: float = 120, stdin: str = "") -> subprocess.CompletedProcess:
        """A command, in a process forked from one that has imported everything."""
        return forkserver.python("-m", "bigtrain", *arguments, cwd=self.directory, timeout=timeout, stdin=stdin)

    def apart(self, *arguments: str | Path, timeout: float = 120, stdin: str = "") -> subprocess.CompletedProcess:
        """A command as a user starts it, in a process that imports for itself."""
        command = [*CLI, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=self.directory, input=stdin)

    def train(self, processes: int, *overrides: str, timeout: float = 180) -> tuple[int, str]:
        """Train to the end, in forked processes."""
        done = forkserver.torchrun(
            processes, "-m", "bigtrain", "train", self.config, *overrides, cwd=self.directory, timeout=timeout
        )
        return done.returncode, done.stdout

    def start_training(
        self, processes: int, *overrides: str, restarts: int = 0, faults: str | None = None
    ) -> subprocess.Popen:
        """Begin to train, under the launcher, as a user does; on order with faults, see bigtrain/base/faults.py."""
        command = [
            *(sys.executable, "-m", "bigtrain.cli.torchrun", "--standalone", f"--nproc-per-node={processes}"),
            *(f"--max-restarts={restarts}", "-m", "bigtrain", "train", str(self.config), *overrides),
        ]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.directory,
            start_new_session=True, env={**os.environ, **({FAULT: faults} if faults else {})},
        )  # fmt: skip

    def start_forked(self, processes: int, *overrides: str) -> forkserver.Started:
        """Begin to train, in forked processes: for tests that kill ranks; what is about the launcher needs it."""
        return forkserver.Started(processes, ("-m", "bigtrain", "train", self.config, *overrides), self.directory)

    def metrics(self, run: Path | None = None) -> list[dict]:
        return read_metrics((run or self.run) / "metrics.jsonl")

    def events(self, run: Path | None = None) -> list[dict]:
        return list(read_json_lines((run or self.run) / "events.jsonl"))

    def wait_for_step(self, step: int, run: Path | None = None, timeout: float = 240) -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if any(record["step"] >= step for record in self.metrics(run)):
                return
            time.sleep(0.05)
        raise AssertionError(f"step {step} was not reached in {timeout} s")


def kill_ranks(training: forkserver.Started) -> None:
    """`kill -9` of all ranks at once; the training has to notice."""
    training.send_signal(signal.SIGKILL)
    assert training.finish().returncode == 128 + signal.SIGKILL


def finish(process: subprocess.Popen, timeout: float = 180) -> tuple[int, str]:
    """Wait for a training; one that hangs is killed with all its workers and fails the test."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def curve(metrics: list[dict]) -> list[tuple]:
    """What must be the same bit for bit in an undisturbed run and in one that was killed."""
    return [(m["step"], m["loss"], m["grad_norm"], m["learning_rate"], m["batch_digest"]) for m in metrics]


def workers_of(process: subprocess.Popen) -> list[int]:
    """The process ids of a training's ranks."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in children]


def as_json(result: subprocess.CompletedProcess):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)

"""A target for ladders, and an executor that writes what runs would have found if they followed a known law."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bigtrain.config import Settings, dump_settings
from bigtrain.estimate import ScalingLaw
from bigtrain.rundir import RunDirectory
from bigtrain.trials.ladder.rungs import LadderRun, Rules

LAW = ScalingLaw(1.4, 60.0, 0.32, 250.0, 0.30)
MOST_LINES = 32
"""Of metrics.jsonl: the steps of a long run are in its last lines."""


def target(folder: Path | str = "runs", **changes: Any) -> Settings:
    """Twelve heads, and 20 tokens a parameter."""
    tree: dict[str, Any] = {
        "run_dir": str(Path(folder) / "big"),
        "model": {
            "hidden_size": 384,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "intermediate_size": 1024,
            "vocab_size": 2048,
            "max_position_embeddings": 256,
        },
        "data": {
            "dir": "datasets/x",
            "sequence_length": 256,
            "tokenizer": {"vocab_size": 2048},
            "sources": [{"name": "c", "kind": "python_stdlib"}],
        },
        "train": {"tokens": 430_000_000, "global_batch_size": 64, "micro_batch_size": 8},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"name": "wsd", "warmup_steps": 500, "decay_steps": 5000},
    }
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    return Settings.model_validate_json(json.dumps(tree))


def rules_of(settings: Settings, ranks: int = 2) -> Rules:
    return Rules(settings, ranks)


def seconds_of(tokens: float, flops: float) -> float:
    """What the steps of a run take: a microsecond a token, and a second for ten trillion operations."""
    return 1e-6 * tokens + 1e-13 * flops


class OfALaw:
    """Writes the records of runs whose held-out loss follows a law, and a bowl around the best rate and batch.

    Args:
        best_rate: of each run; a rate that is 16 times higher diverges.
        best_batch: of each run, in sequences.
        noise: of the log loss, by the name of the run.
    """

    def __init__(
        self,
        best_rate: Callable[[LadderRun], float] = lambda run: run.settings.optimizer.learning_rate,
        best_batch: Callable[[LadderRun], float] = lambda run: run.settings.train.global_batch_size,
        noise: float = 0.0,
    ) -> None:
        self.best_rate, self.best_batch, self.noise = best_rate, best_batch, noise
        self.trained: list[str] = []

    def train(self, runs: Sequence[LadderRun], folder: Path) -> None:
        for run in runs:
            self.trained.append(run.name)
            self.write(run)

    def write(self, run: LadderRun) -> None:
        train = run.settings.train
        off_rate = math.log2(run.settings.optimizer.learning_rate / self.best_rate(run))
        off_batch = math.log2(train.global_batch_size / self.best_batch(run))
        chance = zlib.crc32(run.name.encode()) / 2**32 - 0.5
        loss = LAW.loss(run.parameters, run.tokens)
        loss *= math.exp(0.01 * off_rate**2 + 0.005 * off_batch**2 + self.noise * chance)
        directory = RunDirectory(run.settings.run_dir)
        directory.root.mkdir(parents=True)
        directory.config.write_text(dump_settings(run.settings))
        last = run.settings.total_steps
        first = max(1, last - MOST_LINES + 1)
        seconds = seconds_of(run.tokens, run.flops)
        each = seconds / (last - first + 1)
        lines = [
            {"step": step, "loss": loss, "step_seconds": each, "start": 1, "time": 0.0, "uptime": 9.0}
            for step in range(first, last + 1)
        ]
        directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        validation = [{"source": "c", "loss": loss, "perplexity": math.exp(loss), "tokens": 1000}]
        ended = [
            {"event": "evaluate", "step": last, "seconds": 1.0, "validation": validation},
            {"event": "stop", "step": last, "reason": "all steps done", "exit_status": 0},
        ]
        if off_rate > 4:
            ended = [{"event": "not finite", "step": 3, "loss": None, "grad_norm": None, "batch_digest": ""}]
        common = {"start": 1, "time": 0.0, "uptime": 9.0 + seconds}
        directory.events.write_text("".join(json.dumps({**event, **common}) + "\n" for event in ended))

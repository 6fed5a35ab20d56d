"""A run that never was, with everything in it that a report shows."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from bigtrain.config import Settings, dump_settings
from tests.train.test_continuation import TREE

BEGAN = 1.79e9
STEPS = 400


class Pen:
    """Writes the records of a run as its starts would have."""

    def __init__(self, run: Path) -> None:
        run.mkdir(parents=True)
        tree = {**TREE, "run_dir": str(run), "train": {"steps": STEPS, "global_batch_size": 8}}
        (run / "config.yaml").write_text(dump_settings(Settings.model_validate(tree)))
        self.run, self.now, self.born, self.start, self.step, self.counted = run, 0.0, 0.0, 0, 0, 0.0
        self.chance = random.Random(1)

    def line(self, name: str, record: dict[str, Any]) -> None:
        times = {"start": self.start, "time": round(BEGAN + self.now, 3), "uptime": round(self.now - self.born, 4)}
        with (self.run / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps({**record, **times}) + "\n")

    def event(self, event: str, **details: Any) -> None:
        self.line("events", {"event": event, "step": self.step, **details})

    def begin(self, step: int, **passed_over: str) -> None:
        self.start, self.step, self.born = self.start + 1, step, self.now + 3
        self.now += 14
        if passed_over:
            self.event("fallback", **passed_over)
        clock = {"boot_id": "b", "boot_seconds": 1e4 + self.now, "process_seconds": 11.0, "before_seconds": 3.0}
        phases = {"imports": 6.0, "data": 0.8, "model": 2.0, "checkpoint load": 1.0}
        origin = {"from_checkpoint": f"step-{step:08d}"} if step else {}
        self.event("resume" if step else "start", **origin, clock=clock, phases=phases, world_size=2)

    def train(self, to: int, spike: bool = False) -> None:
        while self.step < to:
            self.step += 1
            wait = 0.6 if self.chance.random() < 0.02 else 0.004
            work = self.chance.gauss(0.5, 0.02)
            self.now += wait + work
            self.counted += work
            loss = 2.2 + 5 * math.exp(-self.step / 60) + self.chance.gauss(0, 0.05) + (2.5 if spike else 0)
            self.line(
                "metrics",
                {
                    "step": self.step,
                    "loss": loss,
                    "learning_rate": 6e-3 * min(1.0, self.step / 20) * min(1.0, (STEPS - self.step + 1) / 160),
                    "grad_norm": abs(self.chance.gauss(0.8, 0.2)) + (6 if spike else 0),
                    "tokens": 8192,
                    "consumed_samples": 32 * self.step,
                    "step_seconds": wait + work,
                    "data_seconds": wait,
                    "forward_backward_seconds": 0.8 * work,
                    "optimizer_seconds": 0.15 * work,
                    "tokens_per_second": 8192 / (wait + work),
                    "mfu": 0.36 + self.chance.gauss(0, 0.01),
                    "mfu_causal": 0.33 + self.chance.gauss(0, 0.01),
                    "mfu_of": "measured",
                    "world_size": 2,
                    "counted_seconds": self.counted,
                },
            )
            if self.step % 25 == 0 and not spike:
                self.now += 0.2
                self.event("save", stall_seconds=0.2)
                self.event("commit", seconds=1.0)
            if self.step % 100 == 0:
                self.evaluate()

    def evaluate(self) -> None:
        self.now += 6.0
        losses = [
            ("source", 2.3 + 5 * math.exp(-self.step / 60)),
            ("documentation", 2.9 + 4 * math.exp(-self.step / 70)),
        ]
        texts = (
            "    return [line for line in lines if <b>not</b> line]",
            "  .. versionadded:: 3.4\n\n     The *key* & more",
        )
        self.event(
            "evaluate",
            seconds=6.0,
            validation=[{"source": n, "loss": v, "perplexity": math.exp(v), "tokens": 9000} for n, v in losses],
            samples=[
                {"source": name, "prompt": f"def step_{self.step}(lines):\n", "completion": made}
                for (name, _), made in zip(losses, texts, strict=True)
            ],
        )


def eventful_run(run: Path) -> Path:
    """Crashes, hangs, spikes, rewinds, falls back, is stopped and comes to its end."""
    pen = Pen(run)
    pen.begin(0)
    pen.train(90)
    pen.now += 17  # kill -9
    pen.begin(50, checkpoint="step-00000075", problems="rank-00001.safetensors: its hash is not what it was")
    pen.train(170)
    pen.train(182, spike=True)
    pen.event("spike", loss=4.9, z=31.0)
    pen.event("skip", steps=[151, 282])
    pen.event("rewind", to_step=150)
    pen.now += 2
    pen.step = 150
    pen.train(250)
    pen.now += 31
    pen.event("hang", seconds=31.0, rank=1, host="node7")
    pen.now += 6
    pen.begin(250)
    pen.train(300)
    pen.event("stop", reason="SIGUSR1", exit_status=75)
    pen.now += 120
    pen.begin(300)
    pen.train(STEPS)
    pen.event("stop", reason="all steps done", exit_status=0)
    return run

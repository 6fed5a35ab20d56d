"""Kill -9 at random instants of `bigtrain train`: every sample is trained on once, shown from metrics.jsonl alone."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from disturbance import Command, Disturbed, disturb, everyone
from kill_build import CLI, ROOT
from record import spread

from bigtrain.rundir.json_lines import read_json_lines

WORLDS = ((1, 2), (2,), (1,))
"""Numbers of processes that the starts of a run take in turn; the runs take these rows in turn."""
KILLS_PER_RUN = 2.5
"""How often an undisturbed run's time is hit, on average."""
LENGTH, BATCH = 64, 8


@dataclass
class Findings:
    """What the metrics of runs that were killed say, against those of an undisturbed run."""

    steps: int = 0
    redone: int = 0
    """Steps done again after a kill: lines beyond the newest one of each step."""
    lost: int = 0
    """Samples that no step trained on."""
    repeated: int = 0
    """Samples that more than one step trained on."""
    other_batches: int = 0
    """Lines, redone ones included, with another digest than the undisturbed run has for the step."""
    jumps: int = 0
    """Lines that neither follow the line before them nor go back."""
    other_losses: int = 0
    """Steps of runs with one number of processes whose loss or gradient norm differs in any bit."""
    largest_difference: float = 0.0
    """Of a loss, relative, in runs whose number of processes changed."""

    def add(self, lines: list[dict[str, Any]], undisturbed: list[dict[str, Any]], *, one_world: bool) -> None:
        """Compare a run with one that nothing happened to."""
        newest = {line["step"]: line for line in lines}
        wanted = {line["step"]: line for line in undisturbed}
        self.steps += len(newest)
        self.redone += len(lines) - len(newest)
        digests = {step: line["batch_digest"] for step, line in wanted.items()}
        self.other_batches += sum(line["batch_digest"] != digests.get(line["step"]) for line in lines)
        self.jumps += sum(b["step"] > a["step"] + 1 for a, b in zip([{"step": 0}, *lines], lines, strict=False))
        trained = 0  # samples [0, trained) have had their turn
        for step in sorted(newest):
            end = newest[step]["consumed_samples"]
            self.lost += max(0, end - BATCH - trained)
            self.repeated += max(0, trained - (end - BATCH))
            trained = end
        self.lost += max(0, BATCH * len(wanted) - trained)
        for step in newest.keys() & wanted:
            ours, theirs = newest[step], wanted[step]
            if one_world:
                self.other_losses += any(ours[key] != theirs[key] for key in ("loss", "grad_norm", "learning_rate"))
            else:
                difference = abs(ours["loss"] - theirs["loss"]) / theirs["loss"]
                self.largest_difference = max(self.largest_difference, difference)

    @property
    def wrong(self) -> int:
        """Everything that must not be."""
        return self.lost + self.repeated + self.other_batches + self.jumps + self.other_losses


class Run:
    """One run, started as often as it takes."""

    def __init__(self, work: Path, name: str, config: Path, worlds: tuple[int, ...]) -> None:
        self.folder, self.worlds = work / name, worlds
        self._config, self._log = config, work / f"{name}.log"
        self._lines, self._half_saved = 0, set[tuple[str, int]]()

    def command(self, start: int) -> Command:
        """What a user types: `bigtrain train` for one process, the launcher for more."""
        processes = self.worlds[start % len(self.worlds)]
        train = [*CLI, "train"] if processes == 1 else [ROOT / "launch/local.sh"]
        # a thread each: threads that wait for each other crawl on a machine that others use too
        environment = {"NPROC": str(processes), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        environment["BIGTRAIN_MAX_RESTARTS"] = "0"  # it is we who start it again
        return Command([*train, self._config, f"run_dir={self.folder}"], ROOT, self._log, environment)

    def metrics(self) -> list[dict[str, Any]]:
        """Every line, in the order of writing."""
        return list(read_json_lines(self.folder / "metrics.jsonl"))

    def going_on(self) -> str:
        """What the kill that just happened interrupted, by the traces that it left."""
        lines = self.metrics()
        half_saved = {(path.name, path.stat().st_ino) for path in self.folder.glob("checkpoints/.*")}
        new_lines, newly_half_saved = len(lines) - self._lines, half_saved - self._half_saved
        self._lines, self._half_saved = len(lines), half_saved
        if newly_half_saved:
            return "a save"
        return "the steps" if new_lines else "start-up, or its end"


def killed_trainings(
    work: Path, kills: int, moments: random.Random, data: dict[str, Any], *, small: bool
) -> Iterator[Any]:
    """Train until so many kills are done; yields the result so far after each run that was finished.

    Args:
        work: an empty folder.
        kills: how many.
        moments: the source of chance.
        data: more keys of the `data` section, such as packing.
        small: short runs.
    """
    steps = 150 if small else 600
    config = training_config(work, steps, data)
    Command([*CLI, "data", "build", config], ROOT, work / "data.log").run()
    references: dict[int, tuple[float, list[dict[str, Any]]]] = {}
    done: list[tuple[Disturbed, float]] = []
    findings, asked = Findings(), 0
    while (left := kills - sum(len(run.kills) for run, _ in done)) > 0:
        worlds = WORLDS[len(done) % len(WORLDS)]
        if worlds[0] not in references:
            reference = Run(work, f"undisturbed-{worlds[0]}", config, worlds)
            references[worlds[0]] = reference.command(0).run(), reference.metrics()
        seconds, undisturbed = references[worlds[0]]
        run = Run(work, f"run-{len(done)}", config, worlds)
        mean = seconds / KILLS_PER_RUN
        was = disturb(run.command, choose, run.going_on, kills=left, mean_seconds=mean, moments=moments)
        done.append((was, seconds))
        lines = run.metrics()
        findings.add(lines, undisturbed, one_world=len(worlds) == 1)
        asked += provenance_agrees(run, moments.choice(lines))
        yield {
            "kills": sum(len(run.kills) for run, _ in done),
            "runs finished and compared": len(done),
            "steps": findings.steps,
            "steps_redone": findings.redone,
            "samples": findings.steps * BATCH,
            "samples_lost": findings.lost,
            "samples_repeated": findings.repeated,
            "batches_that_differ": findings.other_batches,
            "lines_out_of_order": findings.jumps,
            "losses_that_differ_at_one_world_size": findings.other_losses,
            "largest_relative_difference_of_a_loss_over_world_sizes": findings.largest_difference,
            "steps whose digest `data where` recomputed": asked,
            "wrong": findings.wrong,
            "undisturbed_seconds": {f"{world} processes": seconds for world, (seconds, _) in references.items()},
            "seconds_lost_a_kill": spread([run.lost(seconds) for run, seconds in done if run.kills] or [0.0]),
            "killed": Counter(who for run, _ in done for who, _ in run.kills),
            "killed_during": Counter(during for run, _ in done for _, during in run.kills),
            "world_sizes": [list(row) for row in WORLDS],
            "data": data,
        }


def training_config(work: Path, steps: int, data: dict[str, Any]) -> Path:
    """A very small model over two sources, saved every five steps."""
    library = sysconfig.get_path("stdlib")
    settings = {
        "run_dir": str(work / "run"),
        "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
                  "vocab_size": 512, "max_position_embeddings": LENGTH},
        "data": {
            "dir": str(work / "data"),
            "sequence_length": LENGTH,
            "tokenizer": {"vocab_size": 512, "train_bytes": 200_000},
            "sources": [
                {"name": "json", "kind": "text", "path": f"{library}/json/*.py", "weight": 0.3},
                {"name": "email", "kind": "text", "path": f"{library}/email/*.py", "weight": 0.7},
            ],
            "validation": {"fraction": 0.15},
            **data,
        },
        "train": {"steps": steps, "global_batch_size": BATCH, "micro_batch_size": 2, "seed": 7},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"name": "wsd", "warmup_steps": 5, "decay_steps": 10},
        "engine": {"zero_stage": 2, "precision": "fp32"},
        "checkpoint": {"every_steps": 5, "keep": 3},
        "evaluate": {"max_sequences": 4},
        "tracking": {"wandb": "disabled", "log_every_steps": 50},
    }  # fmt: skip
    config = work / "training.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


def choose(launcher: psutil.Process, moments: random.Random) -> tuple[str, list[psutil.Process]]:
    """Victims: one rank, all ranks, the launcher, or everyone; everyone where there are no ranks yet."""
    ranks = launcher.children()
    if not ranks:
        return everyone(launcher, moments)
    return moments.choice(
        [
            ("one rank", [moments.choice(ranks)]),
            ("all ranks", ranks),
            ("the launcher", [launcher]),
            everyone(launcher, moments),
        ]
    )


def provenance_agrees(run: Run, line: dict[str, Any]) -> bool:
    """Whether the documents that `data where` names for a step make the digest that the step recorded."""
    command = [*CLI, "data", "where", str(run.folder), "--step", str(line["step"]), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return bool(json.loads(done.stdout)["batch_digest"] == line["batch_digest"])

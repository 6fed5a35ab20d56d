"""Kill -9 at the saves of `bigtrain train`: of a rank, all of them, the launcher or everyone, aimed from outside."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from disturbance import END_SECONDS, Command
from kill_build import CLI, ROOT
from kill_training import training_config
from save_phases import PHASES, Saves

from bigtrain.checkpoint import tensor_digests
from bigtrain.run.records import read_json_lines

SHAPES = ({"processes": 2, "zero_stage": 2}, {"processes": 2, "zero_stage": 3}, {"processes": 1, "zero_stage": 1})
STEPS, SMALL_STEPS = 50, 20
FIRST_COMMIT_SECONDS = 180.0
EXACT = ("loss", "grad_norm", "learning_rate", "batch_digest", "consumed_samples")


@dataclass
class Tally:
    """What the kills were and what came of them."""

    kills: int = 0
    runs: int = 0
    resumes: int = 0
    steps_compared: int = 0
    tensors_compared: int = 0
    aimed: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    victims: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "kills": self.kills,
            "wrong": len(self.problems),
            "problems": self.problems[:20],
            "runs_finished_and_compared": self.runs,
            "resumes_compared": self.resumes,
            "steps_compared_bit_for_bit": self.steps_compared,
            "tensors_compared_at_the_end": self.tensors_compared,
            "aimed_at": dict(sorted(self.aimed.items())),
            "found_in": {phase: self.found[phase] for phase in PHASES if self.found[phase]},
            "killed": dict(sorted(self.victims.items())),
            "shapes": list(SHAPES),
        }


class Run:
    """One run, started as often as it takes."""

    def __init__(self, folder: Path, config: Path, shape: dict[str, int]) -> None:
        self.folder, self.processes = folder, shape["processes"]
        self.saves = Saves(folder / "checkpoints", self.processes)
        train = [*CLI, "train"] if self.processes == 1 else [ROOT / "launch/local.sh"]
        environment = {"NPROC": str(self.processes), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        arguments = [*train, config, f"run_dir={folder}", f"engine.zero_stage={shape['zero_stage']}"]
        self.command = Command(arguments, ROOT, folder.with_suffix(".log"), environment)
        self.newest: list[int] = []
        """The newest good step after each kill."""

    def records(self, name: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl or events.jsonl."""
        return list(read_json_lines(self.folder / name))

    def durable(self) -> int:
        """The newest step that the run has told to be committed."""
        return max((event["step"] for event in self.records("events.jsonl") if event["event"] == "commit"), default=0)


def killed_trainings(work: Path, kills: int, moments: random.Random, *, small: bool) -> Iterator[dict[str, Any]]:
    """Train and kill until so many kills are done; yields the result so far after each run that was finished."""
    steps = SMALL_STEPS if small else STEPS
    config = _config(work, steps, small=small)
    Command([*CLI, "data", "build", config], ROOT, work / "data.log").run()
    tally = Tally()
    references: dict[int, Run] = {}
    while tally.kills < kills:
        which = tally.runs % (1 if small else len(SHAPES))
        if which not in references:
            references[which] = Run(work / f"undisturbed-{which}", config, SHAPES[which])
            references[which].command.run()
        run = Run(work / f"run-{tally.runs}", config, SHAPES[which])
        while tally.kills < kills and max(run.saves.committed(), default=0) < steps - 4:
            _one_kill(run, moments, tally)
        run.command.run()
        _compare(run, references[which], steps, tally)
        tally.runs += 1
        yield tally.as_dict()


def _one_kill(run: Run, moments: random.Random, tally: Tally) -> None:
    """Start, wait for a save, kill, and look at what is left."""
    saves, name = run.saves, run.folder.name
    before, newest = saves.half_done(), max(saves.committed(), default=0)
    process = run.command.start()
    end = time.monotonic() + FIRST_COMMIT_SECONDS
    while max(saves.committed(), default=0) == newest:
        if process.poll() is not None or time.monotonic() > end:
            run.command.check(process.poll() or -1)
        time.sleep(0.002)
    ranks = process.children() if run.processes > 1 else [process]
    family = [process, *process.children(recursive=True)]
    who, victims = moments.choice(
        [("one rank", [moments.choice(ranks)]), ("one rank", [moments.choice(ranks)]), ("all ranks", ranks),
         ("the launcher", [process]), ("everyone", family)]
    )  # fmt: skip
    phase = moments.choice(PHASES)
    time.sleep(moments.uniform(0, 0.3))
    saves.wait_for(phase, patience=5.0)
    if phase != "just renamed":
        newest = max(saves.committed(), default=0)
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    _, alive = psutil.wait_procs(family, END_SECONDS)
    for survivor in alive:
        tally.problems.append(f"{name}: {survivor} outlived a kill of {who}")
        with suppress(psutil.NoSuchProcess):
            survivor.kill()
    if process.returncode == 0:  # it had just ended
        return
    tally.kills += 1
    tally.aimed[phase] += 1
    tally.victims[who] += 1
    tally.found[saves.traces(newest, before)] += 1
    tally.problems += [f"{name}, kill {tally.kills}: {problem}" for problem in saves.wrong(run.durable())]
    run.newest.append(max(saves.committed(), default=0))


def _compare(run: Run, reference: Run, steps: int, tally: Tally) -> None:
    """Compare every resume, every line of the curve and the last tensors with those of the undisturbed run."""
    name = run.folder.name
    begun = [event["step"] for event in run.records("events.jsonl") if event["event"] in ("start", "resume")]
    if begun != [0, *run.newest]:
        tally.problems.append(f"{name}: began at steps {begun}, and the newest good ones were {run.newest}")
    tally.resumes += len(run.newest)
    if any(event["event"] == "fallback" for event in run.records("events.jsonl")):
        tally.problems.append(f"{name}: a committed checkpoint was passed over")
    wanted = {line["step"]: line for line in reference.records("metrics.jsonl")}
    lines = run.records("metrics.jsonl")
    for line in lines:  # steps that were done again as well
        tally.steps_compared += 1
        if any(line[key] != wanted[line["step"]][key] for key in EXACT):
            tally.problems.append(f"{name}: step {line['step']} differs")
    if sorted({line["step"] for line in lines}) != list(range(1, steps + 1)):
        tally.problems.append(f"{name}: steps are missing")
    ours, theirs = (tensor_digests(last) if (last := each.saves.newest()) else {} for each in (run, reference))
    tally.tensors_compared += len(ours)
    if not ours or ours != theirs:
        tally.problems.append(f"{name}: the last checkpoint differs")


def _config(work: Path, steps: int, *, small: bool) -> Path:
    """A model whose checkpoint takes a while to write, saved after every step."""
    path = training_config(work, steps, {})
    settings = yaml.safe_load(path.read_text())
    width = 64 if small else 192
    settings["model"] |= {"hidden_size": width, "num_hidden_layers": 3, "intermediate_size": 3 * width,
                          "vocab_size": 4096}  # fmt: skip
    settings["train"] |= {"global_batch_size": 4, "micro_batch_size": 2}
    settings["engine"] |= {"precision": "bf16"}
    settings["checkpoint"] = {"every_steps": 1, "keep": 2}
    path.write_text(yaml.safe_dump(settings))
    return path

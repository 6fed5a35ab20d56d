"""Kill -9 at the saves of `bigtrain train`: of a rank, all of them, the launcher or everyone, aimed from outside."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from disturbance import END_SECONDS, Command
from forked import bigtrain, fork_ranks, import_everything
from kill_build import CLI, ROOT
from kill_tally import Tally
from kill_training import training_config
from save_phases import PHASES, Saves

from bigtrain.checkpoint import tensor_digests
from bigtrain.rundir.json_lines import read_json_lines
from bigtrain.trials.verify_resume import EXACT

SHAPES = ({"processes": 2, "zero_stage": 2}, {"processes": 2, "zero_stage": 3}, {"processes": 1, "zero_stage": 1})
STEPS, SMALL_STEPS = 60, 20
FIRST_COMMIT_SECONDS = 180.0
END_OF_RUN_SECONDS = 600.0


class Run:
    """One run, started as often as it takes."""

    def __init__(self, folder: Path, config: Path, shape: dict[str, int], *, launched: bool) -> None:
        self.folder, self.processes = folder, shape["processes"]
        self.saves = Saves(folder / "checkpoints", self.processes)
        self._arguments: list[str | Path] = [
            "train",
            config,
            f"run_dir={folder}",
            f"engine.zero_stage={shape['zero_stage']}",
        ]
        self._launched, self._log = launched, folder.with_suffix(".log")
        self.newest: list[int] = []
        """The newest good step after each kill."""

    def start(self) -> tuple[psutil.Process | None, list[psutil.Process]]:
        """Start it: the launcher, if there is one, and the ranks, once there are all."""
        if not self._launched:
            pids = fork_ranks(self.processes, bigtrain(*self._arguments), self._log)
            return None, [psutil.Process(pid) for pid in pids]
        launcher = [sys.executable, "-m", "bigtrain.cli.torchrun", "--standalone", f"--nproc-per-node={self.processes}"]
        process = Command([*launcher, "-m", "bigtrain", *self._arguments], ROOT, self._log).start()
        while len(ranks := process.children()) < self.processes:
            time.sleep(0.01)
        return process, ranks

    def finish(self) -> None:
        """Start it, and let it come to its end."""
        launcher, ranks = self.start()
        statuses = [process.wait(END_OF_RUN_SECONDS) for process in ([launcher] if launcher else ranks)]
        if any(statuses):
            raise RuntimeError(f"{self.folder} left with {statuses}:\n{self._log.read_text()[-3000:]}")

    def records(self, name: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl or events.jsonl."""
        return list(read_json_lines(self.folder / name))

    def durable(self) -> int:
        """The newest step that the run has told to be committed."""
        return max((event["step"] for event in self.records("events.jsonl") if event["event"] == "commit"), default=0)


def killed_trainings(
    work: Path, kills: int, moments: random.Random, *, small: bool, launched: bool = False
) -> Iterator[dict[str, Any]]:
    """Train and kill until so many kills are done; yields the result so far after each run that was finished.

    Args:
        launched: by torchrun, as a user does it; else the ranks are forked, which takes a tenth of the time.
    """
    import_everything()
    steps = SMALL_STEPS if small else STEPS
    config = _config(work, steps, small=small)
    Command([*CLI, "data", "build", config], ROOT, work / "data.log").run()
    tally = Tally()
    shapes = SHAPES[:1] if small or launched else SHAPES
    references: dict[int, Run] = {}
    while tally.kills < kills:
        which = tally.runs % len(shapes)
        if which not in references:
            references[which] = Run(work / f"undisturbed-{which}", config, shapes[which], launched=False)
            references[which].finish()
        run = Run(work / f"run-{tally.runs}", config, shapes[which], launched=launched)
        while tally.kills < kills and max(run.saves.committed(), default=0) < steps - 4:
            _one_kill(run, moments, tally)
        run.finish()
        _compare(run, references[which], steps, tally)
        tally.runs += 1
        yield {**tally.as_dict(), "shapes": list(shapes)}


def _one_kill(run: Run, moments: random.Random, tally: Tally) -> None:
    """Start, wait for a save, kill, and look at what is left."""
    saves, name = run.saves, run.folder.name
    before, newest = saves.half_done(), max(saves.committed(), default=0)
    launcher, ranks = run.start()
    family = [*ranks, *([launcher] if launcher else [])]
    end = time.monotonic() + FIRST_COMMIT_SECONDS
    while max(saves.committed(), default=0) == newest:
        if time.monotonic() > end or not all(_lives(process) for process in family):
            raise RuntimeError(f"{run.folder} did not save:\n{run.folder.with_suffix('.log').read_text()[-3000:]}")
        time.sleep(0.002)
    choices = [("one rank", [moments.choice(ranks)]), ("one rank", [moments.choice(ranks)]), ("all ranks", ranks)]
    if launcher:
        choices += [("the launcher", [launcher]), ("everyone", family)]
    who, victims = moments.choice(choices)
    phase = moments.choice(PHASES)
    time.sleep(moments.uniform(0, 0.3))
    saves.wait_for(phase, patience=5.0)
    if phase != "just renamed":
        newest = max(saves.committed(), default=0)
    _kill(victims)
    if not launcher:  # its part: to notice, and to end the others
        time.sleep(moments.uniform(0, 0.3))
        _kill(ranks)
    gone, alive = psutil.wait_procs(family, END_SECONDS)
    for survivor in alive:
        tally.problems.append(f"{name}: {survivor} outlived a kill of {who}")
    _kill(alive)
    if not alive and not any(process.wait() for process in gone):  # it had just ended
        return
    tally.kills += 1
    tally.aimed[phase] += 1
    tally.victims[who] += 1
    tally.found[saves.traces(newest, before)] += 1
    tally.problems += [f"{name}, kill {tally.kills}: {problem}" for problem in saves.wrong(run.durable())]
    run.newest.append(max(saves.committed(), default=0))


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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

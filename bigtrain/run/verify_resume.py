"""`bigtrain verify-resume`: the promises about resuming, tried on the user's own machines, launcher and storage.

    undisturbed    K steps, saved a few times on the way
    disturbed      the same: kill -9 in a step, resume, kill -9 in a save, resume, to the end
    reshaped       from the undisturbed run's first checkpoint on, with half of the processes or another ZeRO stage

What a start does is what `bigtrain train` does, with the user's settings: only where things lie, how often it saves and
where it stops are ours. A victim may be on another machine, so it kills itself: see bigtrain/faults.py.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigtrain.checkpoint import Checkpoint, Places, list_checkpoints, newest_verified, storage_at, tensor_digests
from bigtrain.config import BigtrainError, Settings, dump_settings
from bigtrain.faults import KILL, Kill
from bigtrain.run.directory import RunDirectory
from bigtrain.run.records import read_json_lines, read_metrics

Metrics = dict[str, Any]
Digests = Mapping[tuple[str, str], str]

FOLDER = "verify-resume"
DONE, STOPPED = 0, 75
EXACT = ("loss", "grad_norm", "learning_rate", "batch_digest", "consumed_samples")
"""What a resumed run has to repeat bit for bit."""
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 1e-2}
"""Largest relative difference of a loss where other ranks sum in another order, by precision."""
SAVE_POINTS = ("save.copied", "save.writing", "save.written", "save.manifest", "save.staged", "save.renamed")
OF_RANK_0 = ("save.manifest", "save.staged", "save.renamed")


@dataclass(frozen=True)
class Launcher:
    """How ranks are started."""

    template: str
    """A command line to which `-m bigtrain train CONFIG` can be added; {n} stands for the number of processes."""
    processes: int | None
    """That number; None where the command line says it itself."""

    @classmethod
    def of(cls, template: str | None, processes: int | None) -> Launcher:
        """The one that was given, or torchrun on this machine: one process a GPU, or two on a CPU."""
        if template is not None:
            if ("{n}" in template) != (processes is not None):
                raise BigtrainError(
                    "the launcher has to be told the number of processes, or to know it itself",
                    found=f"--launcher {template!r} and " + (f"-n {processes}" if processes else "no -n"),
                    wanted="{n} in the launcher and -n, or neither",
                    fix="write --launcher 'srun -n {n} ...' -n 16; without {n} no other world size is tried",
                )
            return cls(template, processes)
        return cls(f"{shlex.quote(sys.executable)} -m bigtrain.cli.torchrun --standalone --nproc-per-node {{n}}",
                   processes or _devices())  # fmt: skip

    def command(self, processes: int | None, arguments: Sequence[str | Path]) -> list[str]:
        """What starts so many ranks, each with `python -m bigtrain` and these arguments."""
        launcher = shlex.split(self.template.replace("{n}", str(processes)))
        return [*launcher, "-m", "bigtrain", *map(str, arguments)]


@dataclass(frozen=True)
class Finding:
    """One thing that was tried."""

    check: str
    ok: bool
    found: str


@dataclass
class Trial:
    """One of the runs, and its starts."""

    settings: Settings
    launcher: Launcher
    processes: int | None
    log: Path

    @property
    def directory(self) -> RunDirectory:
        """Where it runs."""
        return RunDirectory(self.settings.run_dir)

    @property
    def places(self) -> Places:
        """Where it saves."""
        return Places.of(self.settings.run_dir, self.settings.checkpoint)

    def start(self, *, kill: Kill | None = None, command: Sequence[str | Path] = ("train",)) -> int:
        """Start it and wait until it ends; returns the launcher's exit status."""
        config = self.log.with_suffix(".yaml")
        config.write_text(dump_settings(self.settings), encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if name != KILL}
        if kill is not None:
            environment[KILL] = str(kill)
        name, *rest = command
        with self.log.open("ab") as log:
            command_line = self.launcher.command(self.processes, [name, config, *rest])
            return subprocess.run(command_line, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode

    def finish(self, what: str, command: Sequence[str | Path] = ("train",)) -> None:
        """Start it undisturbed.

        Raises:
            BigtrainError: it did not come to its end; holds the end of the log.
        """
        if (status := self.start(command=command)) not in (DONE, STOPPED):
            raise BigtrainError(
                f"{what} failed",
                found=f"status {status}; the end of {self.log}:\n{self.tail()}",
                wanted=f"status {DONE} or {STOPPED}",
            )

    def tail(self, lines: int = 15) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def metrics(self) -> list[Metrics]:
        """The loss curve."""
        return read_metrics(self.directory.metrics)

    def beginnings(self) -> list[int]:
        """The step at which each of its starts began."""
        return [e["step"] for e in read_json_lines(self.directory.events) if e["event"] in ("start", "resume")]


def verify_resume(
    settings: Settings,
    launcher: Launcher,
    *,
    steps: int,
    keep: bool = False,
    chance: random.Random | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Finding]:
    """Train, kill, resume and compare, under RUN/verify-resume, which goes afterwards.

    Args:
        steps: how many to train.
        keep: leave the runs where they are.
        chance: chooses victims and instants.
        report: told what is going on.

    Raises:
        BigtrainError: a run failed where nobody disturbed it, or nothing could be killed.
    """
    steps = min(steps, settings.total_steps)
    if steps < 3:
        raise BigtrainError("too few steps to stop between", found=f"{steps} steps", wanted="at least 3")
    folder = settings.run_dir / FOLDER
    _clear(folder, settings)
    folder.mkdir(parents=True)
    try:
        findings = []
        for finding in _findings(settings, launcher, steps, folder, chance or random.Random(), report):
            report(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check}: {finding.found}")
            findings.append(finding)
        return findings
    finally:
        if not keep:
            _clear(folder, settings)


def _findings(
    settings: Settings,
    launcher: Launcher,
    steps: int,
    folder: Path,
    chance: random.Random,
    report: Callable[[str], None],
) -> Iterator[Finding]:
    every = max(1, steps // 3)

    def trial(name: str) -> Trial:
        tried = _tried(settings, folder / name, steps, every)
        return Trial(tried, launcher, launcher.processes, folder / f"{name}.log")

    report(f"undisturbed: {steps} steps")
    undisturbed = trial("undisturbed")
    undisturbed.finish("the undisturbed run")
    expected = undisturbed.metrics()
    world = int(expected[-1]["world_size"])
    saved = list_checkpoints(undisturbed.places.durable)
    tensors = tensor_digests(saved[-1])
    yield Finding(
        "an undisturbed run",
        saved[-1].step == steps == len(expected),
        f"{len(expected)} steps, {world} process(es), checkpoints of steps {', '.join(str(c.step) for c in saved)}",
    )

    disturbed = trial("disturbed")
    yield from _kills(disturbed, _orders(expected, every, world, chance), report)
    yield Finding("every step of the killed run", *_same_curve(expected, disturbed.metrics()))
    last = list_checkpoints(disturbed.places.durable)[-1]
    yield Finding(f"every tensor of the checkpoint of step {steps}", *_same_tensors(tensors, tensor_digests(last)))

    first = saved[0]
    reshaped, shape = _reshaped(undisturbed)
    if reshaped is None:
        report(f"reshaped: skipped, {shape}")
        return
    report(f"reshaped: from step {first.step} on, {shape}")
    tensors = tensor_digests(first)
    for later in saved[1:]:
        later.storage.remove(later.step)
    copy = _beside(settings, folder / "resaved")
    reshaped.finish(f"the resume with {shape}", ("resave-and-train", copy))
    resaved = tensor_digests(Checkpoint(first.step, storage_at(copy)))
    yield Finding(f"every tensor loaded with {shape}", *_same_tensors(tensors, resaved))
    tolerance = TOLERANCE[settings.engine.precision]
    yield Finding(f"every step with {shape}", *_near_curve(expected, reshaped.metrics(), first.step, tolerance))


def _orders(expected: Sequence[Metrics], every: int, world: int, chance: random.Random) -> list[tuple[str, Kill]]:
    """Whom to kill and when: in a step behind the first save, and in a save."""
    seconds = sorted(metric["step_seconds"] for metric in expected)[len(expected) // 2]
    step, delay = chance.randint(every + 1, 2 * every), round(chance.uniform(0, seconds), 4)
    point = chance.choice(SAVE_POINTS)
    of_save = 0 if point in OF_RANK_0 else chance.randrange(world)
    return [
        ("in a step", Kill(str(chance.randrange(world)), "step", step, delay)),
        ("in a save", Kill(str(of_save), point)),
    ]


def _kills(trial: Trial, orders: Sequence[tuple[str, Kill]], report: Callable[[str], None]) -> Iterator[Finding]:
    """Start and kill a run in turn, then let it come to its end; was each resume from the newest checkpoint?"""
    newest: list[int] = []
    for where, kill in orders:
        report(f"disturbed: kill -9 {where}, {kill}")
        status = trial.start(kill=kill)
        if not trial.metrics():
            raise BigtrainError(
                "the run ended before its first step",
                found=f"status {status}; the end of {trial.log}:\n{trial.tail()}",
            )
        if status in (DONE, STOPPED):
            raise BigtrainError(
                "the rank that was to be killed was not",
                found=f"{KILL}={kill}, and the launcher left with status {status}",
                fix=f"let the launcher hand the environment variable {KILL} on to the ranks",
            )
        found = newest_verified(trial.places).newest
        newest.append(found.step if found else 0)
    report("disturbed: to its end")
    trial.finish("the run that had been killed")
    resumed = trial.beginnings()[-len(orders) :]
    for (where, kill), there, taken in zip(orders, newest, resumed, strict=True):
        yield Finding(f"kill -9 {where}", there == taken, f"{kill}; newest good step {there}, resumed from {taken}")


def _reshaped(trial: Trial) -> tuple[Trial | None, str]:
    """The same run with half of the processes or another ZeRO stage, and that in words; why not, where neither goes."""
    engine = trial.settings.engine
    group = engine.tensor_parallel_size * engine.sequence_parallel_size
    processes = trial.processes
    if processes is not None and processes % (2 * group) == 0:
        processes //= 2
    for stage in (3, 2, 1, 0):
        if stage == engine.zero_stage:
            continue
        tree = {"engine": {"zero_stage": stage}, "checkpoint": {"local_dir": None}}
        with suppress(ValidationError):
            settings = _with(trial.settings, tree)
            shape = f"ZeRO {stage}" + ("" if processes == trial.processes else f" and {processes} process(es)")
            return Trial(settings, trial.launcher, processes, trial.log.with_name("reshaped.log")), shape
    return None, "no other shape goes with these settings"


def _same_curve(expected: Sequence[Metrics], found: Sequence[Metrics]) -> tuple[bool, str]:
    if len(found) != len(expected):
        return False, f"{len(found)} steps, wanted {len(expected)}"
    for ours, theirs in zip(found, expected, strict=True):
        if differing := [key for key in EXACT if ours[key] != theirs[key]]:
            values = ", ".join(f"{key} {ours[key]}, wanted {theirs[key]}" for key in differing)
            return False, f"step {ours['step']} differs first: {values}"
    return True, f"{', '.join(EXACT)} of {len(found)} steps are the same bit for bit"


def _near_curve(
    expected: Sequence[Metrics], found: Sequence[Metrics], after: int, tolerance: float
) -> tuple[bool, str]:
    pairs = [(ours, theirs) for ours, theirs in zip(found, expected, strict=False) if ours["step"] > after]
    largest = max(abs(ours["loss"] - theirs["loss"]) / abs(theirs["loss"]) for ours, theirs in pairs)
    batches = all(ours["batch_digest"] == theirs["batch_digest"] for ours, theirs in pairs)
    whole = len(found) == len(expected)
    text = f"{'the same' if batches else 'other'} batches in {len(pairs)} steps" + (
        "" if whole else ", others are missing"
    )
    return (
        whole and batches and largest <= tolerance,
        f"{text}; largest relative difference of a loss {largest:.1e}, allowed {tolerance:.0e}",
    )


def _same_tensors(expected: Digests, found: Digests) -> tuple[bool, str]:
    differing = [
        f"{kind} of {name}"
        for name, kind in sorted({*expected, *found})
        if expected.get((name, kind)) != found.get((name, kind))
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        return False, f"{len(differing)} of {len(expected)} differ: {', '.join(differing[:3])}{more}"
    return True, f"{len(found)} weights and moments are the same bit for bit"


def _tried(settings: Settings, run_dir: Path, steps: int, every: int) -> Settings:
    """The user's settings for a trial: elsewhere, shorter, saved as often as the trial needs."""
    checkpoint: dict[str, Any] = {
        "every_steps": every,
        "every_minutes": None,
        "keep": None,
        "keep_every_steps": None,
        "dir": None if settings.checkpoint.dir is None else _beside(settings, run_dir),
    }
    if settings.checkpoint.local_dir is not None:
        checkpoint["local_dir"] = str(settings.checkpoint.local_dir / FOLDER)
    return _with(
        settings,
        {
            "run_dir": str(run_dir),
            "train": {"stop_after": steps},
            "checkpoint": checkpoint,
            "evaluate": {"every_steps": None, "max_sequences": 1},
            "tracking": {"wandb": "disabled"},
        },
    )


def _beside(settings: Settings, run_dir: Path) -> str:
    """Where checkpoints of a trial go: to the same kind of place as those of the run."""
    if settings.checkpoint.dir is None:
        return str(run_dir)
    return f"{settings.checkpoint.dir.rstrip('/')}/{FOLDER}/{run_dir.name}"


def _with(settings: Settings, changes: dict[str, Any]) -> Settings:
    """Settings with some keys changed, checked as a whole."""
    tree = settings.model_dump(mode="json")
    for name, value in changes.items():
        tree[name] = {**tree[name], **value} if isinstance(value, dict) else value
    return Settings.model_validate_json(json.dumps(tree), strict=True)


def _clear(folder: Path, settings: Settings) -> None:
    """Remove the runs, and what they put elsewhere."""
    shutil.rmtree(folder, ignore_errors=True)
    if settings.checkpoint.local_dir is not None:
        shutil.rmtree(settings.checkpoint.local_dir / FOLDER, ignore_errors=True)
    if settings.checkpoint.dir is not None:
        for name in ("undisturbed", "disturbed", "resaved"):
            storage = storage_at(_beside(settings, folder / name))
            for step in storage.steps():
                storage.remove(step)


def _devices() -> int:
    import torch

    return torch.cuda.device_count() or 2

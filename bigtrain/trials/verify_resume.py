"""`bigtrain verify-resume`: a test of resuming on the user's own machines, launcher and storage.

    undisturbed    K steps, saved a few times on the way
    disturbed      the same: kill -9 in a step, resume, kill -9 in a save, resume, to the end
    reshaped       from the undisturbed run's first checkpoint on, with half of the processes or another ZeRO stage

A start is that of `bigtrain train` with the user's settings, except for folders, the saves and the last step. A rank
that is to be killed may be on another machine, so it kills itself: see bigtrain/base/faults.py.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigtrain.base import DONE, FAULT, STOPPED, BigtrainError, Fault
from bigtrain.checkpoint import Checkpoint, list_checkpoints, newest_verified, storage_at, tensor_digests
from bigtrain.config import Settings
from bigtrain.trials.trial import FOLDER, Launcher, Trial, beside, changed, clear, tried_settings

Metrics = dict[str, Any]
Digests = Mapping[tuple[str, str], str]

EXACT = ("loss", "grad_norm", "learning_rate", "batch_digest", "inputs_digest", "consumed_samples")
"""The fields that a resumed run has to repeat bit for bit."""
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 1e-2}
"""Largest relative difference of a loss where other ranks sum in another order, by precision."""
SAVE_POINTS = ("save.copied", "save.writing", "save.written", "save.manifest", "save.staged", "save.renamed")
OF_RANK_0 = ("save.manifest", "save.staged", "save.renamed")


@dataclass(frozen=True)
class ResumeCheck:
    """One promise about resuming, as it was tried."""

    check: str
    ok: bool
    found: str


@dataclass(frozen=True)
class ResumeTrial:
    """All that was tried."""

    ok: bool
    """Whether every promise was kept."""
    checks: list[ResumeCheck]


def verify_resume(
    settings: Settings,
    launcher: Launcher,
    *,
    steps: int,
    keep: bool = False,
    chance: random.Random | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> ResumeTrial:
    """Train, kill, resume and compare, under RUN/verify-resume, which is removed at the end.

    Args:
        steps: how many to train.
        keep: do not remove the runs.
        chance: chooses which ranks are killed, and when.
        report: called with each line of progress.

    Raises:
        BigtrainError: a run failed without a kill, or no rank was killed.
    """
    steps = min(steps, settings.total_steps)
    if steps < 3:
        raise BigtrainError("too few steps to stop between", found=f"{steps} steps", wanted="at least 3")
    folder = settings.run_dir / FOLDER
    clear(folder, settings)
    folder.mkdir(parents=True)
    try:
        findings = []
        for finding in _findings(settings, launcher, steps, folder, chance or random.Random(), report):
            report(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check}: {finding.found}")
            findings.append(finding)
        return ResumeTrial(all(finding.ok for finding in findings), findings)
    finally:
        if not keep:
            clear(folder, settings)


def _findings(
    settings: Settings,
    launcher: Launcher,
    steps: int,
    folder: Path,
    chance: random.Random,
    report: Callable[[str], None],
) -> Iterator[ResumeCheck]:
    every = max(1, steps // 3)

    def trial(name: str) -> Trial:
        tried = tried_settings(settings, folder / name, steps, every)
        return Trial(tried, launcher, launcher.processes, folder / f"{name}.log")

    report(f"undisturbed: {steps} steps")
    undisturbed = trial("undisturbed")
    undisturbed.finish("the undisturbed run")
    expected = undisturbed.metrics()
    world = int(expected[-1]["world_size"])
    saved = list_checkpoints(undisturbed.tiers.durable)
    tensors = tensor_digests(saved[-1])
    yield ResumeCheck(
        "an undisturbed run",
        saved[-1].step == steps == len(expected),
        f"{len(expected)} steps, {world} process(es), checkpoints of steps {', '.join(str(c.step) for c in saved)}",
    )

    disturbed = trial("disturbed")
    yield from _kills(disturbed, _orders(expected, every, world, chance), report)
    same, found = _same_curve(expected, disturbed.metrics())
    if not same:
        report("again: is it the machine that does not repeat itself?")
        again = trial("again")
        again.finish("the undisturbed run, repeated")
        repeats = _same_curve(expected, again.metrics())[0]
        found += f"; without a kill the run {'repeats itself' if repeats else 'does not repeat itself either'}"
    yield ResumeCheck("every step of the killed run", same, found)
    last = list_checkpoints(disturbed.tiers.durable)[-1]
    yield ResumeCheck(f"every tensor of the checkpoint of step {steps}", *_same_tensors(tensors, tensor_digests(last)))

    first = saved[0]
    reshaped, shape = _reshaped(undisturbed)
    if reshaped is None:
        report(f"reshaped: skipped, {shape}")
        return
    report(f"reshaped: from step {first.step} on, {shape}")
    tensors = tensor_digests(first)
    for later in saved[1:]:
        later.storage.remove(later.step)
    copy = beside(settings, folder / "resaved")
    reshaped.finish(f"the resume with {shape}", ("resave-and-train", copy))
    resaved = tensor_digests(Checkpoint(first.step, storage_at(copy)))
    yield ResumeCheck(f"every tensor loaded with {shape}", *_same_tensors(tensors, resaved))
    tolerance = TOLERANCE[settings.engine.precision]
    yield ResumeCheck(f"every step with {shape}", *_near_curve(expected, reshaped.metrics(), first.step, tolerance))


def _orders(expected: Sequence[Metrics], every: int, world: int, chance: random.Random) -> list[tuple[str, Fault]]:
    """Which ranks to kill, and when: in a step after the first save, and in a save."""
    seconds = statistics.median_high(metric["step_seconds"] for metric in expected)
    step, delay = chance.randint(every + 1, 2 * every), round(chance.uniform(0, seconds), 4)
    point = chance.choice(SAVE_POINTS)
    of_save = 0 if point in OF_RANK_0 else chance.randrange(world)
    return [
        ("in a step", Fault("kill", str(chance.randrange(world)), "step", count=step, delay=delay)),
        ("in a save", Fault("kill", str(of_save), point)),
    ]


def _kills(trial: Trial, orders: Sequence[tuple[str, Fault]], report: Callable[[str], None]) -> Iterator[ResumeCheck]:
    """Start and kill a run several times, then let it finish; check that each resume took the newest checkpoint."""
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
                found=f"{FAULT}={kill}, and the launcher ended with status {status}",
                fix=f"let the launcher pass the environment variable {FAULT} to the ranks",
            )
        found = newest_verified(trial.tiers).newest
        newest.append(found.step if found else 0)
    report("disturbed: to its end")
    trial.finish("the run that had been killed")
    resumed = trial.beginnings()[-len(orders) :]
    for (where, kill), there, taken in zip(orders, newest, resumed, strict=True):
        yield ResumeCheck(f"kill -9 {where}", there == taken, f"{kill}; newest good step {there}, resumed from {taken}")


def _reshaped(trial: Trial) -> tuple[Trial | None, str]:
    """The same run with half of the processes or another ZeRO stage, and its description; or None and the reason."""
    engine = trial.settings.engine
    group = engine.tensor_parallel_size * engine.sequence_parallel_size
    processes = trial.processes
    if processes is not None and processes % (2 * group) == 0:
        processes //= 2
    others = [stage for stage in (3, 2, 1, 0) if stage != engine.zero_stage]
    for stage in [*others, engine.zero_stage] if processes != trial.processes else others:
        tree = {"engine": {"zero_stage": stage}, "checkpoint": {"local_dir": None}}
        with suppress(ValidationError):
            settings = changed(trial.settings, tree)
            shape = f"ZeRO {stage}" + ("" if processes == trial.processes else f" and {processes} process(es)")
            return Trial(settings, trial.launcher, processes, trial.log.with_name("reshaped.log")), shape
    return None, "no other shape goes with these settings"


def _same_curve(expected: Sequence[Metrics], found: Sequence[Metrics]) -> tuple[bool, str]:
    if len(found) != len(expected):
        return False, f"{len(found)} steps, wanted {len(expected)}"
    for ours, theirs in zip(found, expected, strict=True):
        if differing := [key for key in EXACT if ours.get(key) != theirs.get(key)]:
            values = ", ".join(f"{key} {ours.get(key)}, wanted {theirs.get(key)}" for key in differing)
            return False, f"step {ours['step']} differs first: {values}"
    compared = [key for key in EXACT if key in expected[0]] if expected else EXACT
    return True, f"{', '.join(compared)} of {len(found)} steps are the same bit for bit"


def _near_curve(
    expected: Sequence[Metrics], found: Sequence[Metrics], after: int, tolerance: float
) -> tuple[bool, str]:
    pairs = [(ours, theirs) for ours, theirs in zip(found, expected, strict=False) if ours["step"] > after]
    largest = max(abs(ours["loss"] - theirs["loss"]) / abs(theirs["loss"]) for ours, theirs in pairs)
    digests = ("batch_digest", "inputs_digest")
    batches = all(ours.get(key) == theirs.get(key) for ours, theirs in pairs for key in digests)
    whole = len(found) == len(expected)
    text = f"{'the same' if batches else 'other'} batches in {len(pairs)} steps{'' if whole else ', others missing'}"
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

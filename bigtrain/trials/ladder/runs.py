"""Trains the runs of a ladder that are not trained yet, here or as an array of jobs on Slurm.

A run is finished when its last start ended with status 0 and its held-out loss was computed after its last step;
nothing else is remembered. So a ladder that is started again finds what is done in the run directories themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bigtrain.base import DONE, STOPPED, BigtrainError, write_atomically
from bigtrain.config import Settings, dump_settings, flat, kind_of
from bigtrain.rundir import Event, RunDirectory, read_events, read_metrics
from bigtrain.submit import ArrayOptions, queued_jobs, submit_array
from bigtrain.trials.ladder.rungs import LadderRun
from bigtrain.trials.trial import Launcher, Trial


class RunsPending(Exception):
    """Runs are in the queue of a cluster; the ladder goes on when they have ended."""

    def __init__(self, runs: Sequence[LadderRun], job: str | None) -> None:
        super().__init__(f"{len(runs)} runs are pending")
        self.runs, self.job = runs, job


@dataclass(frozen=True)
class RunOutcome:
    """A run that has ended."""

    run: LadderRun
    loss: float | None
    """Held out, in nats a token; None where training diverged."""
    seconds: float
    """Of its steps."""


class Executor(Protocol):
    """Trains runs."""

    def train(self, runs: Sequence[LadderRun], folder: Path) -> None:
        """Train runs to their ends.

        Args:
            runs: not finished yet.
            folder: of the ladder.

        Raises:
            BigtrainError: a run failed.
            RunsPending: they are in a queue.
        """


@dataclass(frozen=True)
class Here:
    """Trains on this machine, one run after the other."""

    launcher: Launcher
    report: Callable[[str], None]

    def train(self, runs: Sequence[LadderRun], folder: Path) -> None:
        """See `Executor`."""
        for number, run in enumerate(runs, start=1):
            self.report(f"{run.name} ({number} of {len(runs)}): {run.settings.total_steps} steps")
            trial = trial_of(run, folder, self.launcher)
            status = trial.start()
            if status == STOPPED:
                raise BigtrainError(
                    f"the ladder was stopped in {run.name}, which has committed a checkpoint",
                    found=f"status {STOPPED}",
                    fix="start the ladder again: it goes on from there",
                )
            if status != DONE and outcome_of(run) is None:
                raise BigtrainError(
                    f"{run.name} failed",
                    found=f"status {status}; the end of {trial.log}:\n{trial.tail()}",
                    wanted=f"status {DONE}",
                    fix="remove the cause and start the ladder again: finished runs stay",
                )


@dataclass(frozen=True)
class OnSlurm:
    """Submits an array of jobs, one for each run."""

    options: ArrayOptions
    report: Callable[[str], None]

    def train(self, runs: Sequence[LadderRun], folder: Path) -> None:
        """See `Executor`. Runs that are in the queue already are not submitted again."""
        record = folder / "slurm-jobs.json"
        jobs: dict[str, list[str]] = json.loads(record.read_text()) if record.is_file() else {}
        alive = queued_jobs(list(jobs))
        waiting = {name for job in alive for name in jobs[job]}
        job = None
        if missing := [run for run in runs if run.name not in waiting]:
            configs = [write_config(run, folder) for run in missing]
            job = submit_array(folder, configs, [run.settings.run_dir for run in missing], self.options)
            write_atomically(record, json.dumps({**jobs, job: [run.name for run in missing]}, indent=2))
            self.report(f"{len(missing)} runs submitted as the array {job}")
        raise RunsPending(runs, job)


@dataclass(frozen=True)
class NotAtAll:
    """Only lists what would be trained."""

    def train(self, runs: Sequence[LadderRun], folder: Path) -> None:
        """See `Executor`."""
        raise RunsPending(runs, None)


class Trainer:
    """Trains the runs of one ladder, and keeps what they have found.

    Args:
        folder: of the ladder.
        executor: trains what is not trained yet.
        report: called with each line of progress.
    """

    def __init__(self, folder: Path, executor: Executor, report: Callable[[str], None]) -> None:
        self.folder, self.executor, self.report = folder, executor, report
        self.ended: dict[str, RunOutcome] = {}
        """All runs that were asked for, by name."""

    def train(self, runs: Sequence[LadderRun]) -> list[RunOutcome]:
        """Train those of some runs that are not finished, and return what all of them have found.

        Raises:
            BigtrainError: a run failed, or its directory holds a run of other settings.
            RunsPending: some are in a queue.
        """
        for run in runs:
            require_same_settings(run)
        if missing := [run for run in runs if outcome_of(run) is None]:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.executor.train(missing, self.folder)
        found = {run.name: outcome_of(run) for run in runs}
        self.ended |= {name: outcome for name, outcome in found.items() if outcome is not None}
        return [self.ended[run.name] for run in runs]


def outcome_of(run: LadderRun) -> RunOutcome | None:
    """What a run has found; None where it has not ended."""
    directory = RunDirectory(run.settings.run_dir)
    loss, finished, diverged = None, False, False
    for event in read_events(directory.events):
        match event["event"]:
            case Event.EVALUATE if event["step"] == run.settings.total_steps:
                loss = mean_loss(event["validation"])
            case Event.STOP:
                finished = event.get("exit_status") == DONE
            case Event.NOT_FINITE:
                diverged = True
    if not diverged and (loss is None or not finished):
        return None
    seconds = sum(float(line.get("step_seconds", 0.0)) for line in read_metrics(directory.metrics))
    return RunOutcome(run, None if diverged else loss, seconds)


def mean_loss(validation: Sequence[Any]) -> float:
    """The held-out loss over all sources, by their numbers of tokens."""
    tokens = sum(source["tokens"] for source in validation)
    return float(sum(source["loss"] * source["tokens"] for source in validation) / tokens)


def differing_keys(found: Settings, wanted: Settings) -> list[str]:
    """Settings that decide the mathematics or the data of a run, and differ: `key: value, wanted value`."""
    ours, theirs = flat(wanted), flat(found)
    return [
        f"{key}: {theirs.get(key)}, wanted {ours.get(key)}"
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key) and kind_of(key) != "operation"
    ]


def require_same_settings(run: LadderRun) -> None:
    """Raise BigtrainError where the directory of a run holds one that was trained with other settings."""
    directory = RunDirectory(run.settings.run_dir)
    if directory.config.is_file() and (differing := differing_keys(directory.settings(), run.settings)):
        raise BigtrainError(
            f"{directory.root} holds a run of another ladder",
            found="; ".join(differing[:3]) + (f" and {len(differing) - 3} more" if len(differing) > 3 else ""),
            wanted="the settings of this ladder",
            fix=f"remove {directory.root.parent}, or give run_dir=FOLDER for a new ladder",
        )


def trial_of(run: LadderRun, folder: Path, launcher: Launcher) -> Trial:
    """The starts of a run, with its output in the folder's logs."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return Trial(run.settings, launcher, launcher.processes, logs / f"{run.name}.log")


def write_config(run: LadderRun, folder: Path) -> Path:
    """Write the configuration of a run, for a job; it lies where `trial_of` puts it."""
    path = folder / "logs" / f"{run.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, dump_settings(run.settings))
    return path

"""Trial runs: the settings and the launcher of the user, in another folder, shorter and saved more often."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.base import DONE, FAULT, STOPPED, BigtrainError, Fault, write_atomically
from bigtrain.checkpoint import StorageTiers, storage_at
from bigtrain.config import Settings, dump_settings
from bigtrain.rundir import STARTS, RunDirectory, read_events, read_metrics

FOLDER = "verify-resume"


@dataclass(frozen=True)
class Launcher:
    """How ranks are started."""

    template: str
    """A command line to which `-m bigtrain train CONFIG` can be added; {n} stands for the number of processes."""
    processes: int | None
    """That number; None where the command line has it."""

    @classmethod
    def of(cls, template: str | None, processes: int | None) -> Launcher:
        """The given launcher, or torchrun on this machine: one process for each GPU, or two on a CPU."""
        if template is not None:
            if ("{n}" in template) != (processes is not None):
                raise BigtrainError(
                    "the launcher needs the number of processes from -n, or has to contain it",
                    found=f"--launcher {template!r} and " + (f"-n {processes}" if processes else "no -n"),
                    wanted="{n} in the launcher and -n, or neither",
                    fix="write --launcher 'srun -n {n} ...' -n 16; without {n} no other world size is tried",
                )
            return cls(template, processes)
        torchrun = f"{shlex.quote(sys.executable)} -m bigtrain.cli.torchrun --standalone --nproc-per-node {{n}}"
        return cls(torchrun, processes or _devices())

    def command(self, processes: int | None, arguments: Sequence[str | Path]) -> list[str]:
        """The command line that starts this many ranks, each with `python -m bigtrain` and these arguments."""
        launcher = _words(self.template.replace("{n}", str(processes)))
        return [*launcher, "-m", "bigtrain", *map(str, arguments)]


@dataclass
class Trial:
    """A trial run and its starts."""

    settings: Settings
    launcher: Launcher
    processes: int | None
    log: Path

    @property
    def directory(self) -> RunDirectory:
        """Its run directory."""
        return RunDirectory(self.settings.run_dir)

    @property
    def tiers(self) -> StorageTiers:
        """Its checkpoints."""
        return StorageTiers.of(self.settings.run_dir, self.settings.checkpoint)

    def start(self, *, kill: Fault | None = None, command: Sequence[str | Path] = ("train",)) -> int:
        """Start it and wait until it ends; returns the launcher's exit status."""
        config = self.log.with_suffix(".yaml")
        write_atomically(config, dump_settings(self.settings), durable=False)
        environment = {name: value for name, value in os.environ.items() if name != FAULT}
        if kill is not None:
            environment[FAULT] = str(kill)
        name, *rest = command
        with self.log.open("ab") as log:
            command_line = self.launcher.command(self.processes, [name, config, *rest])
            return subprocess.run(command_line, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode

    def finish(self, what: str, command: Sequence[str | Path] = ("train",)) -> None:
        """Start it undisturbed.

        Raises:
            BigtrainError: it failed; the message has the end of the log.
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

    def metrics(self) -> list[dict[str, Any]]:
        """The loss curve."""
        return read_metrics(self.directory.metrics)

    def beginnings(self) -> list[int]:
        """The step at which each of its starts went on."""
        return [e.get("step", 0) for e in read_events(self.directory.events) if e["event"] in STARTS]


def _words(template: str) -> list[str]:
    try:
        return shlex.split(template)
    except ValueError as error:
        raise BigtrainError(
            f"--launcher cannot be cut into words: {error}",
            found=template,
            wanted="a command line as one would write it in a shell, with each quotation mark closed",
            fix="--launcher 'srun -n {n} python' -n 16",
        ) from None


def tried_settings(settings: Settings, run_dir: Path, steps: int, every: int) -> Settings:
    """The settings for a trial: another run directory, fewer steps, and a save every `every` steps."""
    checkpoint: dict[str, Any] = {
        "every_steps": every,
        "every_minutes": None,
        "keep": None,
        "keep_every_steps": None,
        "dir": None if settings.checkpoint.dir is None else beside(settings, run_dir),
    }
    if settings.checkpoint.local_dir is not None:
        checkpoint["local_dir"] = str(settings.checkpoint.local_dir / FOLDER)
    return changed(
        settings,
        {
            "run_dir": str(run_dir),
            "train": {"stop_after": steps},
            "checkpoint": checkpoint,
            "evaluate": {"every_steps": None, "max_sequences": 1},
            "tracking": {"wandb": "disabled"},
        },
    )


def beside(settings: Settings, run_dir: Path) -> str:
    """Where checkpoints of a trial are saved: on the same kind of storage as those of the run."""
    if settings.checkpoint.dir is None:
        return str(run_dir)
    return f"{settings.checkpoint.dir.rstrip('/')}/{FOLDER}/{run_dir.name}"


def changed(settings: Settings, changes: dict[str, Any]) -> Settings:
    """Settings with some keys changed, checked as a whole."""
    tree = settings.model_dump(mode="json")
    for name, value in changes.items():
        tree[name] = {**tree[name], **value} if isinstance(value, dict) else value
    return Settings.model_validate_json(json.dumps(tree), strict=True)


def clear(folder: Path, settings: Settings) -> None:
    """Remove the trial runs, and their checkpoints elsewhere."""
    shutil.rmtree(folder, ignore_errors=True)
    if settings.checkpoint.local_dir is not None:
        shutil.rmtree(settings.checkpoint.local_dir / FOLDER, ignore_errors=True)
    if settings.checkpoint.dir is not None:
        for name in ("undisturbed", "disturbed", "again", "resaved"):
            storage = storage_at(beside(settings, folder / name))
            for step in storage.steps():
                storage.remove(step)


def _devices() -> int:
    import torch

    return torch.cuda.device_count() or 2

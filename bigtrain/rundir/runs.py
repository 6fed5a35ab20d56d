"""The runs below a folder and their status, from the first and the last lines of their records.

No file is read through: a run of a million steps costs as much as one of ten.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bigtrain.base import BigtrainError, read_regular
from bigtrain.rundir.counted_seconds import CountedSeconds
from bigtrain.rundir.directory import RunDirectory, directory_of_start
from bigtrain.rundir.events import STARTS
from bigtrain.rundir.json_lines import first_json_lines, last_json_lines
from bigtrain.rundir.records import newest_metrics
from bigtrain.rundir.starts import seconds_of

State = Literal["running", "finished", "stopped", "crashed"]
MANIFEST = "manifest.json"
"""Of a checkpoint, which is whole where it has one."""
NOT_RUNS = {"checkpoints", "wandb", "logs"}


@dataclass(frozen=True)
class RunStatus:
    """The status of a run."""

    run: str
    state: State
    """running: a process holds its lock; finished: the schedule is done; stopped: on request, with a checkpoint of what
    was done; crashed: none of these."""
    step: int
    """The last step that is done."""
    total_steps: int | None
    """Null where the configuration cannot be read."""
    loss: float | None
    """Of the last step, in nats; null before the first, as the next two."""
    tokens_per_second: float | None
    world_size: int | None
    goodput: float | None
    """Null for a run of a version that did not count it."""
    last_event: str
    age_seconds: float
    """Since its last record."""
    checkpoints: int | None
    """Null where the checkpoints are at a URL, as the next."""
    checkpoint_bytes: int | None


def list_runs(root: Path) -> list[RunStatus]:
    """The runs below a folder, the most recently active one first.

    Raises:
        BigtrainError: there is no such folder.
    """
    if not root.is_dir():
        raise BigtrainError(f"{root} is no folder", fix="give a folder with run directories in it, for example runs")
    return sorted((state_of(RunDirectory(run)) for run in _runs(root)), key=lambda state: state.age_seconds)


def state_of(directory: RunDirectory) -> RunStatus:
    """The status of a run, from its first and last records."""
    first, last = _first_start(directory.events), _last_line(directory.events)
    newest = newest_metrics(directory.metrics) or {}
    latest = max(seconds_of(record, "time") for record in (last, newest))
    config = _text_of(directory.config)
    checkpoints = _checkpoints(directory, config)
    return RunStatus(
        run=str(directory.root),
        state=_state(directory, last),
        step=newest.get("step", 0),
        total_steps=_total_steps(directory, config),
        loss=newest.get("loss"),
        tokens_per_second=newest.get("tokens_per_second"),
        world_size=newest.get("world_size"),
        goodput=_goodput(first, newest, latest),
        last_event=str(last.get("event", "")),
        age_seconds=round(max(0.0, time.time() - (latest or directory.config.stat().st_mtime)), 1),
        checkpoints=None if checkpoints is None else checkpoints[0],
        checkpoint_bytes=None if checkpoints is None else checkpoints[1],
    )


def _text_of(config: Path) -> str:
    """The configuration as text; empty where it cannot be read, so that the other runs are still listed."""
    try:
        return read_regular(config).decode("utf-8", "replace")
    except (OSError, BigtrainError):
        return ""


def _runs(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        if "config.yaml" in files and ("events.jsonl" in files or "metrics.jsonl" in files):
            yield Path(folder)
            subfolders[:] = [name for name in subfolders if name not in NOT_RUNS]
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))


def _state(directory: RunDirectory, last: dict[str, Any]) -> State:
    if directory.is_locked():
        return "running"
    if last.get("event") != "stop":  # it is the last event of a start
        return "crashed"
    return "finished" if last.get("exit_status") == 0 else "stopped"


def _goodput(first: dict[str, Any], newest: dict[str, Any], latest: float) -> float | None:
    """The goodput of the ledger, but by the time of day instead of its clocks."""
    if CountedSeconds.KEY not in newest or "uptime" not in first:
        return None
    clock = first.get("clock")
    clock = clock if isinstance(clock, dict) else {}
    before = sum(seconds_of(clock, key) for key in ("before_seconds", "queued_seconds"))
    wall = latest - (seconds_of(first, "time") - seconds_of(first, "uptime") - before)
    return round(min(1.0, seconds_of(newest, CountedSeconds.KEY) / wall), 5) if wall > 0 else None


def _total_steps(directory: RunDirectory, config: str) -> int | None:
    steps = _leaf(config, "train", "steps")
    if steps is not None and steps.isdigit():
        return int(steps)
    try:
        return directory.settings().total_steps  # in tokens: rarer, and slower to read
    except BigtrainError:
        return None


def _checkpoints(directory: RunDirectory, config: str) -> tuple[int, int] | None:
    """The number of checkpoints and their bytes; None where they are at a URL."""
    place = _leaf(config, "checkpoint", "dir")
    if place is not None and "://" in place:
        return None
    count, size = 0, 0
    folder_of_all = directory.checkpoints
    if place is not None:
        start = directory_of_start(directory.root, Path(_leaf_of_top(config, "run_dir") or "/")) or Path()
        folder_of_all = start / place
    for folder, _, files in os.walk(folder_of_all):
        named = _bytes_of_manifest(Path(folder, MANIFEST)) if MANIFEST in files else None
        count += MANIFEST in files
        size += sum(_size_of(folder, file) for file in files) if named is None else named
    return count, size


def _bytes_of_manifest(path: Path) -> int | None:
    """The bytes of a checkpoint, as its manifest names them: it has thousands of files. None where it is damaged."""
    try:
        content = read_regular(path)
        files = json.loads(content)["files"].values()
        return len(content) + sum(int(file["size"]) for file in files)
    except (OSError, BigtrainError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def _size_of(folder: str, file: str) -> int:
    try:
        return os.stat(os.path.join(folder, file)).st_size  # noqa: PTH116, PTH118 (there may be many)
    except OSError:
        return 0  # it was removed meanwhile


def _leaf(config: str, section: str, key: str) -> str | None:
    """A scalar in a config.yaml as bigtrain writes it; None where it is null or missing."""
    block = re.search(rf"^{section}:\n((?:[ \n].*\n?)*)", config, re.MULTILINE)
    value = re.search(rf"^  {key}: (.+)$", block[1], re.MULTILINE) if block else None
    return None if value is None or value[1] in ("null", "~") else value[1].strip("'\"")


def _leaf_of_top(config: str, key: str) -> str | None:
    """A scalar at the top level of a config.yaml as bigtrain writes it; None where it is missing."""
    value = re.search(rf"^{key}: (.+)$", config, re.MULTILINE)
    return None if value is None else value[1].strip("'\"")


def _first_start(events: Path) -> dict[str, Any]:
    """The first event of the first start."""
    return next((record for record in first_json_lines(events) if record.get("event") in STARTS), {})


def _last_line(events: Path) -> dict[str, Any]:
    return next(reversed(list(last_json_lines(events))), {})

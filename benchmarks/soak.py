"""A soak: one run, hit by random rows of the fault table for as long as you like, and checked after each of them.

    python benchmarks/soak.py CONFIG [--minutes 60] [--seed 0] [--processes 2] [--out FOLDER] [key=value ...]

CONFIG is trained in a folder of its own, under the launcher. It goes through chapters: a start with orders for a few
faults (kills at any point, hangs, crashes, stopped processes: one strikes each start that the launcher makes), which
ends with a fault from outside (a stop signal, the launcher killed, rot in the newest checkpoint, half a line in
metrics.jsonl, a second job in the same place) or with the schedule. After each fault: no start may begin before what
was committed, each step's batch must be the plan's, a step that was done again must come out the same, and the newest
checkpoint must verify. In the end the curve is compared with that of a run to which nothing happened: bit for bit
where --processes is one number; with several (1,2,4) each chapter takes another, the batches must be the same, and
losses agree within floating-point reduction order.

Status 1 when anything is wrong. The result is written after every chapter.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from disturbance import Command
from kill_build import CLI, ROOT
from record import write_result

sys.path.append(str(ROOT))
from soak_endings import ENDINGS

from bigtrain.base.faults import Fault
from bigtrain.checkpoint import StorageTiers, newest_verified
from bigtrain.config import load_settings
from bigtrain.data.provenance.provenance import digest_of
from bigtrain.rundir.provenance import OpenedRun
from tests.system.fault_runs import Launched, steps_done
from tests.system.fault_table import at_random
from tests.system.run_sandbox import RunSandbox, curve

HANG_SECONDS = 20
SLOW_SECONDS = 90
"""For start-up, first steps and saves. By default it is half an hour, and a hang at the first batch would take that."""
FAULTS_OF_A_CHAPTER = 4
STEPS_BETWEEN_FAULTS = 12
"""At most; a fault comes so many steps after its start has begun."""
TOLERANCE = 0.02
"""Relative, of losses of runs whose number of processes changed."""


@dataclass
class Tally:
    """What was done, and what is wrong."""

    faults: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    runs: int = 0
    lines_checked: int = 0
    steps_repeated: int = 0
    steps_compared: int = 0
    checkpoints_verified: int = 0
    largest_difference: float = 0.0
    problems: list[str] = field(default_factory=list)


class Watched:
    """A run directory, and how far its records have been checked."""

    def __init__(self, sandbox: RunSandbox, tally: Tally, *, exact: bool) -> None:
        self.sandbox, self._tally, self._exact = sandbox, tally, exact
        self._lines = self._events = self._committed = 0
        self._first: dict[int, dict[str, Any]] = {}
        self._data: OpenedRun | None = None

    def expect_to_fall_back(self) -> None:
        """What was committed has been harmed from outside."""
        self._committed = 0

    def check(self, after: str) -> None:
        """Check everything that was recorded since the last time."""
        tell, tally = self._tally.problems.append, self._tally
        events = self.sandbox.events()
        for event in events[self._events :]:
            if event["event"] in ("start", "resume"):
                tally.starts += 1
                if event["step"] < self._committed:
                    tell(f"{after}: began at {event['step']}, though {self._committed} was committed")
                self._committed = event["step"]
            elif event["event"] == "commit":
                self._committed = max(self._committed, event["step"])
        self._events = len(events)
        lines = steps_done(self.sandbox)
        for line in lines[self._lines :]:
            self._check_line(line, after)
        self._lines = len(lines)
        if self._committed:
            found = newest_verified(StorageTiers.of(self.sandbox.run))
            tally.checkpoints_verified += 1
            if found.newest is None or found.newest.step < self._committed:
                tell(f"{after}: {found.newest} verifies, though {self._committed} was committed")

    def _check_line(self, line: dict[str, Any], after: str) -> None:
        step, tally = line["step"], self._tally
        tally.lines_checked += 1
        self._data = self._data or OpenedRun.open(self.sandbox.run)
        if digest_of(self._data.contents_of_step(step)) != line["batch_digest"]:
            tally.problems.append(f"{after}: step {step} had another batch than the plan's")
        if step in self._first:
            tally.steps_repeated += 1
            if self._exact and curve([self._first[step]]) != curve([line]):
                tally.problems.append(f"{after}: step {step} came out another way when it was done again")
        elif step > 1 and step - 1 not in self._first:
            tally.problems.append(f"{after}: step {step} follows nothing")
        self._first[step] = line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="how long to go on hitting")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--processes", default="2", help="of the starts: one number, or several to choose from (1,2,4)")
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="more settings")
    args = parser.parse_intermixed_args()
    worlds = [int(world) for world in args.processes.split(",")]
    chance, tally, began = random.Random(args.seed), Tally(), time.monotonic()

    def keep() -> None:
        result = {
            "config": args.config.name,
            "overrides": args.overrides,
            "seed": args.seed,
            "processes": worlds,
            "minutes": round((time.monotonic() - began) / 60, 1),
            **vars(tally),
            "wrong": len(tally.problems),
        }
        path = write_result("soak", result, args.out)
        print(f"{sum(tally.faults.values())} faults, {len(tally.problems)} wrong; {path}", flush=True)

    with tempfile.TemporaryDirectory(prefix="bigtrain-soak-") as folder:
        work = Path(folder)
        config = _config(work, args.config, args.overrides)
        Command([*CLI, "data", "build", config], ROOT, work / "data.log").run()
        total = load_settings(config).total_steps
        reached: list[RunSandbox] = []
        while time.monotonic() - began < 60 * args.minutes:
            sandbox = _house(work / f"run-{tally.runs}", config)
            watched = Watched(sandbox, tally, exact=len(worlds) == 1)
            reached.append(sandbox)
            while time.monotonic() - began < 60 * args.minutes:
                _chapter(watched, chance, worlds, tally)
                keep()
                if (sandbox.metrics() or [{"step": 0}])[-1]["step"] == total:
                    break
            tally.runs += 1
        last = max(sandbox.metrics()[-1]["step"] for sandbox in reached)
        reference = _house(work / "undisturbed", config)
        Launched(reference, f"train.stop_after={last}", processes=worlds[0]).finish(0 if last == total else 75)
        for sandbox in reached:
            _compare(sandbox, reference, tally, exact=len(worlds) == 1)
        keep()
    return int(bool(tally.problems))


def _chapter(watched: Watched, chance: random.Random, worlds: list[int], tally: Tally) -> None:
    """One call of the launcher, with a fault for each start that it makes, and its end."""
    sandbox, processes = watched.sandbox, chance.choice(worlds)
    faults = [
        at_random(chance, processes, steps=STEPS_BETWEEN_FAULTS, start=start)
        for start in range(chance.randint(1, FAULTS_OF_A_CHAPTER))
    ]
    orders = ";".join(map(str, faults))
    for mark in (sandbox.directory / "marks").glob("*"):
        mark.unlink()
    run = Launched(sandbox, processes=processes, restarts=FAULTS_OF_A_CHAPTER + 1, orders=orders)
    try:
        struck = 0
        while run.process.poll() is None and struck < len(faults):
            time.sleep(0.5)
            if (strikes := len(run.strikes())) > struck and run.starts_made() > strikes:
                _count(tally, faults[struck:strikes])
                struck = strikes
                watched.check(f"{faults[struck - 1]} by {processes} processes")
        if run.process.poll() is not None:  # the schedule has ended, or something is wrong
            _count(tally, faults[struck : len(run.strikes())])
            status = run.finish(None)
            if status:
                tally.problems.append(f"{orders}: left with {status}: {run.output[-1500:]}")
        else:
            name, end = chance.choice(ENDINGS)
            steps = len(steps_done(sandbox))
            run.wait_until(lambda: len(steps_done(sandbox)) > steps + 2 or run.process.poll() is not None, "no step")
            tally.endings[name] += 1
            end(run, watched)
            orders = f"{orders}; {name}"
    except AssertionError as error:
        tally.problems.append(f"{orders}: {str(error)[-2000:]}")
    finally:
        run.kill()
    watched.check(orders)


def _count(tally: Tally, faults: list[Fault]) -> None:
    tally.faults.update(f"{fault.action} at {fault.at}" for fault in faults)


def _compare(sandbox: RunSandbox, reference: RunSandbox, tally: Tally, *, exact: bool) -> None:
    """The curve of a run that was hit, with one that was not."""
    wanted = {line["step"]: line for line in reference.metrics()}
    for line in sandbox.metrics():
        theirs = wanted[line["step"]]
        tally.steps_compared += 1
        difference = abs(line["loss"] - theirs["loss"]) / theirs["loss"]
        tally.largest_difference = max(tally.largest_difference, difference)
        same = curve([line]) == curve([theirs]) if exact else difference < TOLERANCE
        if not same or line["batch_digest"] != theirs["batch_digest"]:
            tally.problems.append(f"step {line['step']} is not that of a run to which nothing happened")


def _config(work: Path, given: Path, overrides: list[str]) -> Path:
    """The configuration with what a soak needs: data and saves of its own, and a watchdog that does not wait long."""
    settings = yaml.safe_load(given.read_text())
    for dotted, value in (
        ("data.dir", str(work / "data")),
        ("tracking.wandb", "disabled"),
        ("guard.hang_seconds", HANG_SECONDS),
        ("guard.hang_slow_seconds", SLOW_SECONDS),
        ("checkpoint.every_steps", 5),
        ("checkpoint.keep", 3),
        ("evaluate.every_steps", 20),
        *((key, yaml.safe_load(value)) for key, _, value in (item.partition("=") for item in overrides)),
    ):
        *path, last = dotted.split(".")
        section = settings
        for key in path:
            section = section.setdefault(key, {})
        section[last] = value
    path_of = work / "config.yaml"
    path_of.write_text(yaml.safe_dump(settings))
    return path_of


def _house(directory: Path, config: Path) -> RunSandbox:
    directory.mkdir()
    settings = yaml.safe_load(config.read_text()) | {"run_dir": str(directory / "run")}
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return RunSandbox(directory, path)


if __name__ == "__main__":
    sys.exit(main())

"""Kill -9 at the saves of ranks that do nothing but save: the real Saver over real processes, without DeepSpeed.

A rank of the real training takes seconds to start, most of them for imports. These are forked from a process that has
imported everything, so that a kill, a restart and a resume take about a second and hundreds of kills are affordable.
Their "training" changes a state of some megabytes by random numbers from the generator that the checkpoint holds, so
that a step is right only if weights, moments and generator all were.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from forked import fork_ranks
from kill_tally import Tally
from save_phases import PHASES, Saves

from bigtrain.base import gather
from bigtrain.base.faults import POINTS, Fault, set_faults
from bigtrain.checkpoint import Cursor, Fragment, Saver, StorageTiers, load, newest_verified, tensor_digests
from bigtrain.checkpoint.folder import Folder
from bigtrain.checkpoint.tensor_file import bytes_of
from bigtrain.config import CheckpointSettings
from bigtrain.engine.topology import start
from bigtrain.rundir.json_lines import JsonLines, read_json_lines
from bigtrain.rundir.records import read_metrics

KINDS = ("master", "exp_avg", "exp_avg_sq")
KEEP = 2
OF_RANK_0 = ("save.manifest", "save.staged", "save.renamed", "save.pruning")
SAVE_POINTS = tuple(point for point in POINTS if point.startswith("save."))
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Shape:
    """What one run is like."""

    ranks: int
    asynchronous: bool
    elements: int
    """Of a tensor, over all ranks; there is one of each kind."""
    steps: int

    def __str__(self) -> str:
        return f"{self.ranks} ranks, {'asynchronous' if self.asynchronous else 'synchronous'}"


SHAPES = (Shape(2, True, 3_000_000, 90), Shape(3, True, 3_000_000, 90), Shape(2, False, 3_000_000, 90))
SMALL = (Shape(2, True, 300_000, 30),)


@dataclass
class SaverTally(Tally):
    """The same of ranks that only save."""

    missed: int = 0
    """Orders to die at a point that the run had no time to come to."""

    def as_dict(self) -> dict[str, Any]:
        """For the result file."""
        return {**super().as_dict(), "orders_that_came_too_late": self.missed}


class Ranks:
    """The processes of one start."""

    def __init__(self, folder: Path, shape: Shape, kill: Fault | None = None) -> None:
        def work() -> int:
            set_faults(*([kill] if kill else []))
            _train(folder, shape)
            return 0

        folder.mkdir(parents=True, exist_ok=True)
        self.pids = fork_ranks(shape.ranks, work, folder / "ranks.log")
        self.statuses: dict[int, int] = {}

    def kill(self, *ranks: int) -> None:
        """Kill -9."""
        for rank in ranks:
            if rank not in self.statuses:
                os.kill(self.pids[rank], signal.SIGKILL)

    def ended(self) -> list[int]:
        """The ranks that have ended by now."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.statuses:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.statuses[rank] = os.waitstatus_to_exitcode(status)
        return list(self.statuses)

    def wait(self, seconds: float, *, all_of_them: bool) -> bool:
        """Wait until one, or every one, has ended; whether it has."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ended = self.ended()
            if len(ended) == len(self.pids) or (ended and not all_of_them):
                return True
            time.sleep(0.001)
        return False


def killed_savers(work: Path, kills: int, moments: random.Random, *, small: bool) -> Iterator[dict[str, Any]]:
    """Save and kill until so many kills are done; yields the result so far after each run that was finished."""
    torch.set_num_threads(1)  # a process with threads cannot be forked
    tally = SaverTally()
    shapes = SMALL if small else SHAPES
    references: dict[Shape, Path] = {}
    while tally.kills < kills:
        shape = shapes[tally.runs % len(shapes)]
        if shape not in references:
            references[shape] = work / f"undisturbed-{len(references)}"
            _to_the_end(references[shape], shape, tally)
        _one_run(work / f"run-{tally.runs}", references[shape], shape, kills - tally.kills, moments, tally)
        yield {**tally.as_dict(), "shapes": [str(shape) for shape in shapes]}


def _one_run(
    folder: Path, reference: Path, shape: Shape, kills: int, moments: random.Random, tally: SaverTally
) -> None:
    """A run with at most so many kills on its way."""
    saves = Saves(folder / "checkpoints", shape.ranks)
    for number in range(kills):
        if max(saves.committed(), default=0) >= shape.steps - 8:  # leave it some way to go
            break
        problems = _one_kill(folder, shape, saves, moments, tally)
        tally.problems += [f"{folder.name}, kill {number}: {problem}" for problem in problems]
    _to_the_end(folder, shape, tally)
    _compare(folder, reference, shape, tally)
    tally.runs += 1


def _one_kill(folder: Path, shape: Shape, saves: Saves, moments: random.Random, tally: SaverTally) -> list[str]:
    """Start, kill, look at what is left; returns what is wrong with it."""
    before, newest = saves.half_done(), max(saves.committed(), default=0)
    whole = moments.random() < 0.3
    if moments.random() < 0.4:  # at a point of the code
        point = moments.choice(SAVE_POINTS)
        rank = "0" if point in OF_RANK_0 else str(moments.randrange(shape.ranks))
        count = moments.randint(1, 3) + (KEEP if point == "save.pruning" and newest < KEEP else 0)
        ranks = Ranks(folder, shape, Fault("kill", "*" if whole and point not in OF_RANK_0 else rank, point, count))
        aimed, who = f"point {point}", "all ranks" if whole and point not in OF_RANK_0 else "one rank"
        if not ranks.wait(PATIENCE_SECONDS, all_of_them=False):
            return [f"{aimed} was not reached in {PATIENCE_SECONDS:.0f} s"]
        if point != "save.renamed":
            newest = max(saves.committed(), default=0)
    else:  # at an instant that is chosen from outside
        phase = moments.choice(PHASES)
        ranks = Ranks(folder, shape)
        _until(lambda: max(saves.committed(), default=0) > newest or bool(ranks.ended()))
        time.sleep(moments.uniform(0, 0.1))
        saves.wait_for(phase, patience=3.0)
        if phase != "just renamed":
            newest = max(saves.committed(), default=0)
        time.sleep(moments.choice([0.0, 0.0, moments.uniform(0, 0.02)]))
        victims = range(shape.ranks) if whole else [moments.randrange(shape.ranks)]
        ranks.kill(*victims)
        aimed, who = f"sight of {phase}", "all ranks" if whole else "one rank"
    time.sleep(moments.choice([0.0, moments.uniform(0, 0.2)]))  # what a launcher needs to notice
    ranks.kill(*range(shape.ranks))
    if not ranks.wait(10, all_of_them=True):
        return ["a rank outlived kill -9"]
    if all(status == 0 for status in ranks.statuses.values()):
        tally.missed += 1
        return []
    problems = [f"rank {rank} left with status {s}" for rank, s in ranks.statuses.items() if s not in (-9, 0, 1)]
    tally.kills += 1
    tally.aimed[aimed] += 1
    tally.victims[who] += 1
    tally.found[saves.traces(newest, before)] += 1
    durable = max((e["step"] for e in _events(folder) if e["event"] == "commit"), default=0)
    return problems + saves.wrong(durable)


def _to_the_end(folder: Path, shape: Shape, tally: Tally) -> None:
    ranks = Ranks(folder, shape)
    if not ranks.wait(600, all_of_them=True) or any(ranks.statuses.values()):
        ranks.kill(*range(shape.ranks))
        raise RuntimeError(
            f"{folder} did not come to its end: {ranks.statuses}\n{(folder / 'ranks.log').read_text()[-3000:]}"
        )


def _compare(folder: Path, reference: Path, shape: Shape, tally: Tally) -> None:
    """Compare every resume, every step and the last tensors with those of the undisturbed run."""
    wanted = {record["step"]: record for record in read_metrics(reference / "metrics.jsonl")}
    lines = list(read_json_lines(folder / "metrics.jsonl"))
    for line in lines:  # steps that were done again as well
        tally.steps_compared += 1
        if any(line[key] != wanted[line["step"]][key] for key in ("loss", "digests")):
            tally.problems.append(f"{folder.name}: step {line['step']} differs")
    if sorted({line["step"] for line in lines}) != sorted(wanted):
        tally.problems.append(f"{folder.name}: steps are missing")
    for event in _events(folder):
        if event["event"] == "resume":
            tally.resumes += 1
            if event["step"] != event["newest"]:
                tally.problems.append(f"{folder.name}: resumed from {event['step']}, newest {event['newest']}")
            if event["digests"] != wanted[event["step"]]["digests"]:
                tally.problems.append(f"{folder.name}: what was loaded of step {event['step']} differs")
    last = [Saves(path / "checkpoints", shape.ranks).newest() for path in (folder, reference)]
    ours, theirs = (tensor_digests(checkpoint) for checkpoint in last if checkpoint is not None)
    tally.tensors_compared += len(ours)
    if ours != theirs or last[0] is None or last[0].step != shape.steps:
        tally.problems.append(f"{folder.name}: the last checkpoint differs")


def _train(folder: Path, shape: Shape) -> None:
    """What a rank does: find the newest checkpoint, load it, and go on to the last step, saving each."""
    topology = start(timeout_minutes=0.5)
    places = StorageTiers(Folder(folder / "checkpoints"))
    settings = CheckpointSettings(asynchronous=shape.asynchronous, keep=KEEP)
    saver = Saver(places, topology.background(), settings)
    first, end = (i * shape.elements // shape.ranks for i in (topology.rank, topology.rank + 1))
    torch.manual_seed(topology.rank)
    fragments = [Fragment("weight", kind, (shape.elements,), first, torch.zeros(end - first)) for kind in KINDS]
    events = JsonLines(folder / "events.jsonl") if topology.rank == 0 else None
    metrics = JsonLines(folder / "metrics.jsonl") if topology.rank == 0 else None

    seen = max(places.durable.steps(), default=0)
    search = newest_verified(places, ranks=topology)
    step = 0
    if search.newest is not None:
        loaded = load(search.newest, fragments, ranks=topology)
        assert loaded.rng is not None
        torch.set_rng_state(loaded.rng["cpu"])
        step = loaded.summary.cursor.step
        digests = gather(topology, _digest(fragments))
        if events is not None:
            events.append({"event": "resume", "step": step, "newest": seen, "digests": digests})

    def note_commits() -> None:
        for commit in saver.finished():
            if events is not None:
                events.append({"event": "commit", "step": commit.checkpoint.step})

    while step < shape.steps:
        for fragment in fragments:
            fragment.data.mul_(0.99).add_(torch.rand(fragment.data.numel()))
        step += 1
        loss = topology.sum_across_ranks([float(sum(fragment.data.double().sum() for fragment in fragments))])[0]
        digests = gather(topology, _digest(fragments))
        if metrics is not None:
            metrics.append({"step": step, "loss": loss, "digests": digests})
        note_commits()
        saver.save(
            Cursor(step, step, "plan", step),
            fragments,
            {"cpu": torch.get_rng_state()},
            mathematics={},
            zero_stage=0,
            state={},
            last=step == shape.steps,
            before=metrics.sync if metrics is not None else lambda: None,
        )
    saver.wait()
    note_commits()
    topology.barrier()


def _digest(fragments: list[Fragment]) -> str:
    hasher = xxhash.xxh3_64()
    for fragment in fragments:
        hasher.update(bytes_of(fragment.data))
    return hasher.hexdigest()


def _events(folder: Path) -> list[dict[str, Any]]:
    return list(read_json_lines(folder / "events.jsonl"))


def _until(happened: Any, seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            raise RuntimeError(f"nothing was saved in {seconds} s")
        time.sleep(0.0005)

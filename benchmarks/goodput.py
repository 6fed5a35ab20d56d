"""Goodput of a run whose ranks are killed at random, beside what the model predicts; and the model at cluster sizes.

    python benchmarks/goodput.py [--minutes 20] [--mean-seconds 150] [--seed 0] [--config configs/quickstart.yaml]
    python benchmarks/goodput.py --table          only the predictions for clusters

First the costs of a save and of a restart are measured in a run that is killed once. From these, and the times at
which ranks are going to be killed (those of a Poisson process), the goodput is predicted and kept; then the run is
made, under the launcher alone: nobody but it starts anything again. SIGKILL hits a random rank, wherever it is,
start-up included.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import random
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from disturbance import Command
from goodput_clusters import predictions
from kill_build import CLI, ROOT
from record import spread, write_result

from bigtrain.estimate.goodput import Costs, Goodput, expected_goodput, optimal_interval
from bigtrain.rundir.closed_starts import account_of
from bigtrain.rundir.directory import RunDirectory
from bigtrain.rundir.json_lines import read_json_lines

PROCESSES = 2
STEPS = 1_000_000
CALIBRATION_STEPS = 30
PATIENCE_SECONDS = 300.0


class Run:
    """A run under the launcher, which restarts it as often as it takes."""

    def __init__(self, work: Path, name: str, config: Path, interval_seconds: float) -> None:
        self.folder, self._log = work / name, work / f"{name}.log"
        launcher = [sys.executable, "-m", "bigtrain.cli.torchrun", "--standalone", f"--nproc-per-node={PROCESSES}"]
        settings = [
            *(f"run_dir={self.folder}", f"train.steps={STEPS}", "evaluate.every_steps=null", "tracking.wandb=disabled"),
            *("checkpoint.every_steps=null", f"checkpoint.every_minutes={interval_seconds / 60}", "checkpoint.keep=2"),
        ]
        command: list[str | Path] = [*launcher, "--max-restarts=10", "-m", "bigtrain", "train", config, *settings]
        self.began = time.time()
        self._process = Command(command, ROOT, self._log).start()

    def records(self, name: str) -> list[dict[str, Any]]:
        """The lines of metrics or events."""
        return list(read_json_lines(self.folder / f"{name}.jsonl"))

    def wait_for_steps(self, lines: int) -> None:
        """Until metrics.jsonl has so many lines."""
        end = time.monotonic() + PATIENCE_SECONDS
        while len(self.records("metrics")) < lines:
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError(f"{self.folder} does not train:\n{self.tail()}")
            time.sleep(0.1)

    def kill_a_rank(self, draw: random.Random) -> float:
        """SIGKILL for one of the ranks, as soon as there are any; when it was."""
        rank = draw.randrange(PROCESSES)
        while self._process.poll() is None:
            for child in self._process.children():
                with suppress(psutil.Error):
                    if child.environ().get("RANK") == str(rank):
                        child.kill()
                        return time.time()
            time.sleep(0.01)
        raise RuntimeError(f"the launcher has left:\n{self.tail()}")

    def seconds_until_told(self, deaths: int) -> float:
        """How long the launcher takes to tell of one more death."""
        began = time.monotonic()
        while self._log.read_text(errors="replace").count("was killed by SIGKILL") < deaths:
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise RuntimeError(f"nobody noticed:\n{self.tail()}")
            time.sleep(0.01)
        return time.monotonic() - began

    def stop(self) -> None:
        """Ask it to commit and leave."""
        self._process.terminate()
        status = self._process.wait(PATIENCE_SECONDS)
        if status != 75:
            raise RuntimeError(f"left with {status}:\n{self.tail()}")

    def tail(self) -> str:
        """The end of what it printed."""
        return self._log.read_text(errors="replace")[-3000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/quickstart.yaml")
    parser.add_argument("--minutes", type=float, default=20, help="of the run that is killed")
    parser.add_argument("--mean-seconds", type=float, default=150, help="between two kills, on average")
    parser.add_argument("--seed", type=int, default=0, help="of when and whom to kill")
    parser.add_argument("--table", action="store_true", help="only the predictions for clusters")
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    args = parser.parse_args()
    if args.table:
        print_table(predictions())
        return 0
    with tempfile.TemporaryDirectory(prefix="bigtrain-goodput-") as folder:
        work = Path(folder)
        Command([*CLI, "data", "build", args.config], ROOT, work / "data.log").run()
        costs, calibration = calibrated(work, args.config)
        interval = max(optimal_interval(costs.stall_seconds, args.mean_seconds), costs.durable_seconds)
        draw = random.Random(args.seed)
        gaps = (draw.expovariate(1 / args.mean_seconds) for _ in itertools.count())
        kills = list(itertools.takewhile(lambda at: at < 60 * args.minutes, itertools.accumulate(gaps)))
        result: dict[str, Any] = {
            "config": args.config.name,
            "minutes": args.minutes,
            "mean_seconds_between_kills": args.mean_seconds,
            "seed": args.seed,
            "kills": [round(at, 1) for at in kills],
            "calibration": calibration,
            "interval_seconds": round(interval, 2),
            "predicted": rounded(expected_goodput(costs, interval, args.mean_seconds)),
            "predicted_for_these_kills": rounded(with_kills(kills, 60 * args.minutes, costs, interval)),
        }
        print("predicted:", result["predicted"], "for these kills:", result["predicted_for_these_kills"], flush=True)
        write_result("goodput", result, args.out)  # before the run: it is a prediction
        result["measured"] = killed_at(work, args.config, kills, 60 * args.minutes, interval, draw)
    result["clusters"] = predictions()
    path = write_result("goodput", result, args.out)
    print("measured:", result["measured"]["shares"])
    print_table(result["clusters"])
    print(path)
    return 0


def calibrated(work: Path, config: Path) -> tuple[Costs, dict[str, Any]]:
    """What a save and a death cost here, from a run that saves every few seconds and is killed once."""
    run = Run(work, "calibration", config, interval_seconds=5)
    run.wait_for_steps(CALIBRATION_STEPS)
    first_step = run.records("metrics")[0]
    lines = len(run.records("metrics"))
    struck = run.kill_a_rank(random.Random(1))
    told = run.seconds_until_told(1)
    run.wait_for_steps(lines + CALIBRATION_STEPS)
    run.stop()
    metrics, events = run.records("metrics"), run.records("events")
    again = next(line for line in metrics if line["time"] > struck + told)
    stalls = [event["stall_seconds"] for event in events if event["event"] == "save"]
    durable = [event["seconds"] for event in events if event["event"] == "commit"]
    costs = Costs(
        stall_seconds=statistics.median(stalls),
        durable_seconds=statistics.median(durable),
        detection_seconds=told,
        restart_seconds=again["time"] - again["step_seconds"] - struck - told,
    )
    return costs, {
        **{name: round(seconds, 3) for name, seconds in dataclasses.asdict(costs).items()},
        "first_start_seconds": round(first_step["time"] - first_step["step_seconds"] - run.began, 2),
        "step_seconds": round(statistics.median(line["step_seconds"] for line in metrics), 4),
        "saves": len(stalls),
    }


def with_kills(kills: list[float], until: float, costs: Costs, interval: float) -> Goodput:
    """The model's shares for failures at these very times, from the first step on: event by event.

    A failure within a restart begins it anew. What a start has not made durable when it is killed counts as repeated;
    the last one commits before it leaves.
    """
    period = interval + costs.stall_seconds
    training = saving = repeated = detection = restart = 0.0
    now = 0.0  # begin of the first step of a start
    for at in kills:
        if at > now:
            lived = at - now
            saves = max(0, int((lived - (costs.durable_seconds - costs.stall_seconds)) // period))
            training += saves * interval
            saving += saves * costs.stall_seconds
            repeated += lived - saves * period
        else:  # takes back what was planned of the restart behind this moment
            over = now - at
            restart -= min(over, costs.restart_seconds)
            detection -= max(0.0, over - costs.restart_seconds)
        detection += costs.detection_seconds
        restart += costs.restart_seconds
        now = at + costs.detection_seconds + costs.restart_seconds
    if until > now:
        saves = int((until - now) // period)
        training += until - now - saves * costs.stall_seconds
        saving += saves * costs.stall_seconds
    whole = max(until, now)
    return Goodput(*(seconds / whole for seconds in (training, saving, repeated, detection, restart)))


def killed_at(
    work: Path, config: Path, kills: list[float], until: float, interval: float, draw: random.Random
) -> dict[str, Any]:
    """The same for real: kill ranks at these times after the first step, then stop and read the records."""
    run = Run(work, "killed", config, interval)
    run.wait_for_steps(1)
    first = run.records("metrics")[0]
    began = first["time"] - first["step_seconds"]
    strikes, told = [], []
    for number, at in enumerate(kills, 1):
        time.sleep(max(0.0, began + at - time.time()))
        strikes.append(run.kill_a_rank(draw))
        told.append(run.seconds_until_told(number))
    time.sleep(max(0.0, began + until - time.time()))
    run.stop()
    return shares(run, began, strikes, told)


def shares(run: Run, began: float, strikes: list[float], told: list[float]) -> dict[str, Any]:
    """Where the time went, by metrics.jsonl and events.jsonl alone."""
    metrics, events = run.records("metrics"), run.records("events")
    ended = metrics[-1]["time"]
    whole = ended - began
    counts = {line["step"]: line for line in metrics}  # the last line of a step
    stalls = [event for event in events if event["event"] == "save" and event["time"] <= ended]
    kept = {event["step"]: event["stall_seconds"] for event in stalls}
    training = sum(line["step_seconds"] for line in counts.values())
    saving = sum(seconds for step, seconds in kept.items() if step in counts)
    down, restarts = 0.0, []
    for strike, (known, until) in zip(
        strikes, itertools.pairwise([*map(sum, zip(strikes, told, strict=True)), ended]), strict=True
    ):
        following = [line for line in metrics if known < line["time"] <= until]
        if following:  # else the next kill came before a step was done
            first = following[0]["time"] - following[0]["step_seconds"]
            restarts.append(first - known)
            down += first - strike
        else:
            down += until - strike
    detection = sum(told)
    measured = {
        "training": training / whole,
        "saving": saving / whole,
        "detection": detection / whole,
        "restart": (down - detection) / whole,
    }
    return {
        "seconds": round(whole, 1),
        "kills": len(strikes),
        "steps": len(counts),
        "steps_repeated": len(metrics) - len(counts),
        "shares": {
            **{name: round(share, 4) for name, share in measured.items()},
            "repeated and the rest": round(1 - sum(measured.values()), 4),
        },
        "restart_to_first_step_seconds": spread(restarts),
        "detection_seconds": spread(told),
        "save_stall_seconds": spread([event["stall_seconds"] for event in stalls]),
        "ledger": account_of(RunDirectory(run.folder)).as_dict(),  # of the whole run, with its first start-up
    }


def rounded(goodput: Goodput) -> dict[str, float]:
    """For the result file."""
    return {name: round(share, 4) for name, share in dataclasses.asdict(goodput).items()}


def print_table(rows: list[dict[str, Any]]) -> None:
    """The predictions for clusters, a line each."""
    for row in rows:
        print(
            f"{row['gpus']:>6} GPUs  {row['failures']:<44} one failure in {row['mtbf_hours']:7.1f} h  "
            f"save every {row['interval_seconds']:6.0f} s  goodput {row['goodput']:6.2%}"
            + (f"  (target {row['target']:.0%}, holds up to a restart of {row['restart_limit_seconds']:,.0f} s)"
               if "target" in row else "")
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

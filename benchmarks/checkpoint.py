"""Checkpoints, side by side: bigtrain, DeepSpeed's own, DeepSpeed's universal ones, and torch.distributed.checkpoint.

    python benchmarks/checkpoint.py [--zero-stage 2] [--minutes 8.5]    # 8 GB of disk
    python benchmarks/checkpoint.py --tiny                                # a rehearsal of the same code

Saves: 2 processes (gloo, CPU) hold one engine in bf16, and every route saves its very state, in turns. The stall is
what the save call takes. Behind an asynchronous one the training goes on, and `lost` is all that a save costs it: the
stall, and by how much the steps that began before the writer was done took longer than those before the save. Durable
means fsynced: bigtrain and dcp do it themselves; DeepSpeed (and dcp-unsynced, which is told to) leaves its files to the
kernel, so its stall is given as it is, and its time until durable with an fsync of every file.

Resumes: processes of their own, from launch to the end of the first step, from the page cache. `train` is the ordinary
command with its data and records; the others are one minimal script that differs in the loading alone. bigtrain's load
hashes every file first. Resharded: from 2 to 4 processes, for which DeepSpeed needs ds_to_universal. Every load must
give the bits that were saved, and the first step the loss of the others; else there is no result.

Memory: the kernel's high-water mark of a rank's resident pages, over those before, in sizes of the state that the rank
owns (float32 master weights and moments). Of a save it counts all that a route keeps for the next one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoint_worker import STARTED
from record import spread, write_result

WORKER = Path(__file__).with_name("checkpoint_worker.py")
CONFIG = Path("configs/quickstart.yaml")
MODEL = [
    "model.hidden_size=768", "model.num_hidden_layers=12", "model.num_attention_heads=12",
    "model.num_key_value_heads=12", "model.intermediate_size=2048", "data.sequence_length=64",
]  # fmt: skip
TRAINING = ["train.global_batch_size=4", "train.micro_batch_size=1", "engine.precision=bf16"]
SAVED_BY, RESHARDED_TO = 2, 4
SAME_SHAPE = ("bigtrain", "deepspeed", "dcp")
RESHARDED = ("bigtrain", "deepspeed-universal", "dcp")
PEAK = "peak_extra_per_owned_byte"
WAYS = ("save to state", "save to first step")

Measured = dict[str, dict[str, list[float]]]
"""By route and quantity, a number a repeat."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zero-stage", type=int, default=2, choices=(1, 2, 3))
    parser.add_argument("--repeats", type=int, default=5, help="of the saves")
    parser.add_argument("--resumes", type=int, default=5, help="repeats of the resumes, at most")
    parser.add_argument("--minutes", type=float, default=8.5, help="begin no repeat that would end later")
    parser.add_argument("--tiny", action="store_true", help="the quickstart's model, once")
    parser.add_argument("--work", type=Path, default=None, help="folder on the disk to measure on")
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    args = parser.parse_args()
    settings = [*([] if args.tiny else MODEL), *TRAINING, f"engine.zero_stage={args.zero_stage}"]
    repeats, resumes = (2, 1) if args.tiny else (args.repeats, args.resumes)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=args.work, prefix="checkpoints-") as folder:
        bench = Bench(Path(folder), settings)
        saves = bench.run("save", SAVED_BY, "--repeats", str(repeats))
        same_shape, resharded = bench.resumes(resumes, began + 60 * args.minutes, saves)
    name = "checkpoint" if args.zero_stage == 2 else f"checkpoint_zero{args.zero_stage}"
    routes: Measured = saves["routes"]
    add_whole_ways(routes, resharded)
    ratio = ratios(routes, same_shape, resharded)
    result = {
        "settings": settings,
        "parameters": saves["parameters"],
        "owned_bytes_of_a_rank": saves["owned_bytes"],
        "processes": {"saved by": SAVED_BY, "resharded to": RESHARDED_TO},
        "saves": spreads(routes),
        "resume": spreads(same_shape),
        "resharded": spreads(resharded),
        "ratios": ratio,
        "targets": targets(ratio, routes, [same_shape, resharded]),
    }
    table(result)
    if args.tiny:
        print("a rehearsal: too small for the targets, and not kept")
    else:
        for target, outcome in result["targets"].items():
            print(f"{'met   ' if outcome['met'] else 'MISSED'} {target}: {outcome}")
        print(f"\n{write_result(name, result, args.out)}")


class Bench:
    """The processes that measure, one job of them after the other, in one folder."""

    def __init__(self, work: Path, settings: list[str]) -> None:
        self.work, self.settings = work, settings
        self.environment = {**os.environ, "DS_ACCELERATOR": "cpu", "TORCH_CPP_LOG_LEVEL": "ERROR"}

    def run(self, what: str, processes: int, *arguments: str) -> dict[str, Any]:
        """The worker under torchrun; what it measured."""
        report = self.work / "report.json"
        overrides = [f"--override={each}" for each in self.settings]
        command = [str(WORKER), what, f"--config={CONFIG}", *overrides, f"--work={self.work}", f"--report={report}"]
        self.launch(processes, [*command, *arguments], {0}, show=what == "save")
        measured: dict[str, Any] = json.loads(report.read_text())
        report.unlink()
        return measured

    def launch(self, processes: int, program: list[str], expected: set[int], *, show: bool = False) -> None:
        launcher = ["-m", "bigtrain.cli.torchrun", "--standalone", f"--nproc-per-node={processes}"]
        done = subprocess.run(
            [sys.executable, *launcher, *program],
            env={**self.environment, STARTED: repr(time.time())},
            stdout=None if show else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode not in expected:
            sys.exit(f"{' '.join(program)} left with status {done.returncode}:\n{done.stderr[-4000:]}")

    def resumes(self, repeats: int, ends: float, saves: dict[str, Any]) -> tuple[Measured, Measured]:
        """From launch to the first step: with as many processes as have saved, and with more.

        Args:
            repeats: at most so many, all routes in turns.
            ends: as many of them as are likely to be done at this time; one at least.
        """
        same_shape: Measured = {}
        resharded: Measured = {}
        self.train(1)
        longest = 0.0
        for repeat in range(repeats):
            if longest > ends - time.monotonic():
                break
            began = time.monotonic()
            same_shape.setdefault("train", {}).setdefault("first step", []).append(self.train(2 + repeat))
            for route in SAME_SHAPE:
                self.resume(route, SAVED_BY, same_shape, saves)
            for route in RESHARDED:
                if route == "deepspeed-universal":  # what has to be done before is a part of it
                    seconds = timed(self.convert)
                    resharded.setdefault(route, {}).setdefault("ds_to_universal", []).append(seconds)
                self.resume(route, RESHARDED_TO, resharded, saves)
            say(f"resume {repeat + 1}", same_shape)
            say(f"resume {repeat + 1} with {RESHARDED_TO} processes", resharded)
            longest = max(longest, time.monotonic() - began)
        return same_shape, resharded

    def resume(self, route: str, processes: int, measured: Measured, saves: dict[str, Any]) -> None:
        extra = ["--override=engine.deepspeed.checkpoint.load_universal=true"] if route.endswith("universal") else []
        resumed = self.run("resume", processes, f"--route={route}", *extra)
        if resumed["state"] != saves["state"] or abs(resumed["loss"] - saves["loss_after"]) > 0.01:
            sys.exit(f"{route} has loaded another state than was saved: {resumed}, wanted {saves}")
        numbers = {"load": resumed["load_seconds"], **{name: resumed[name] for name in (PEAK, "of_it_mapped_files")}}
        for name, value in {**resumed["milestones"], **numbers}.items():
            measured.setdefault(route, {}).setdefault(name, []).append(value)

    def train(self, stop_after: int) -> float:
        """Seconds from the launch of `bigtrain train` to its next step."""
        run_dir = self.work / "run"
        overrides = [
            f"run_dir={run_dir}", "train.steps=1000", f"train.stop_after={stop_after}", "checkpoint.every_steps=null",
            "checkpoint.keep=1", "evaluate.every_steps=null", "tracking.wandb=disabled",
        ]  # fmt: skip
        started = time.time()
        self.launch(SAVED_BY, ["-m", "bigtrain", "train", str(CONFIG), *self.settings, *overrides], {75})
        *_, last = (run_dir / "metrics.jsonl").read_text().splitlines()
        seconds: float = json.loads(last)["time"] - started
        return seconds

    def convert(self) -> None:
        """DeepSpeed's checkpoint to a universal one, with the tool's own defaults."""
        source, target = self.work / "deepspeed" / "newest", self.work / "deepspeed-universal" / "newest"
        tool = "deepspeed.checkpoint.ds_to_universal"
        shutil.rmtree(target.parent, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", tool, f"--input_folder={source}", f"--output_folder={target}"],
            env=self.environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def timed(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def say(what: str, measured: Measured) -> None:
    print(f"{what}: seconds to the first step  ", end="")
    print("  ".join(f"{route} {values['first step'][-1]:.1f}" for route, values in measured.items()), flush=True)


def spreads(measured: Measured) -> dict[str, Any]:
    return {route: {name: spread(each) for name, each in values.items()} for route, values in measured.items()}


def add_whole_ways(saves: Measured, resharded: Measured) -> None:
    """Everything from the begin of a save to the state in the other processes, and to their first step.

    DeepSpeed's save counts as it is, without an fsync; the others' are durable.
    """
    for route, values in resharded.items():
        source, what = ("deepspeed", "stall_seconds") if route not in saves else (route, "durable_seconds")
        saved = statistics.median(saves[source][what])
        converted = values.get("ds_to_universal", [0.0] * len(values["load"]))
        for what, after in (("save to state", values["load"]), ("save to first step", values["first step"])):
            values[what] = [saved + one + other for one, other in zip(converted, after, strict=True)]


def ratios(saves: Measured, same_shape: Measured, resharded: Measured) -> dict[str, Any]:
    """Theirs over ours, repeat by repeat."""
    parts = [("save", what, saves) for what in ("stall_seconds", "durable_seconds")]
    parts += [("resume", what, same_shape) for what in ("load", "first step")]
    parts += [("resharded", what, resharded) for what in ("load", "save to state", "save to first step")]
    return {
        f"{name}: {what}": {
            route: spread([a / b for a, b in zip(values[what], measured["bigtrain"][what], strict=True)])
            for route, values in measured.items()
            if route != "bigtrain" and what in values
        }
        for name, what, measured in parts
    }


def targets(ratio: dict[str, Any], saves: Measured, resumes: list[Measured]) -> dict[str, Any]:
    """Those of issue 4, with what was measured."""
    stall = ratio["save: stall_seconds"]["deepspeed"]["median"]
    memory = [statistics.median(each["bigtrain"][PEAK]) for each in (saves, *resumes)]
    resharded = {what: ratio[f"resharded: {what}"]["deepspeed-universal"]["median"] for what in WAYS}
    return {
        "a stall of at most a tenth of DeepSpeed's save": {"times shorter": stall, "met": stall >= 10},
        "a resharded resume at least twice as fast as the universal way": {
            **resharded,
            "met": min(resharded.values()) >= 2,
        },
        "peak extra host memory at most 1.3 times the state": {"times": max(memory), "met": max(memory) <= 1.3},
    }


def table(result: dict[str, Any]) -> None:
    """For people: medians, and what they are in ours."""
    ratio = result["ratios"]
    print(f"\n{result['parameters']:,} parameters, {result['owned_bytes_of_a_rank'] / 1e6:.0f} MB of state a rank")
    print(
        f"\n{'save by':20} {'stall s':>8} {'lost s':>8} {'durable s':>10} {'B/param':>8} {'memory':>7}  stall in ours"
    )
    for route, values in result["saves"].items():
        times = [values[what]["median"] for what in ("stall_seconds", "lost_seconds", "durable_seconds")]
        others = values["bytes_per_parameter"]["median"], values[PEAK]["median"]
        print(
            f"{route:20} {times[0]:8.3f} {times[1]:8.3f} {times[2]:10.3f} {others[0]:8.2f} {others[1]:7.2f}  "
            f"{ranged(ratio['save: stall_seconds'].get(route))}"
        )
    for route, values in result["saves"].items():
        if slowdown := values.get("slowdown_of_steps_beside"):
            print(f"steps beside {route} took {ranged(slowdown)} times as long")
    for title, name in (("resume", "resume"), (f"resume with {RESHARDED_TO}", "resharded")):
        heads = f"{'convert':>8} {'imported':>8} {'engine':>8} {'loaded':>8} {'step':>8} {'load':>8} {'memory':>8}"
        print(f"\n{title + ' by':20} {heads}  in ours: load; to the first step")
        for route, values in result[name].items():
            names = ("ds_to_universal", "imported", "engine built", "loaded", "first step", "load", PEAK)
            cells = " ".join(f"{values[n]['median']:8.2f}" if n in values else " " * 8 for n in names)
            whole = "save to first step" if name == "resharded" else "first step"
            load, to_step = (ranged(ratio[f"{name}: {what}"].get(route)) for what in ("load", whole))
            print(f"{route:20} {cells}  {load}; {to_step}")
    print("\nresharded, save + conversion + load in ours: ", end="")
    print(ranged(ratio["resharded: save to state"]["deepspeed-universal"]))


def ranged(ratio: dict[str, Any] | None) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else "1"


if __name__ == "__main__":
    main()

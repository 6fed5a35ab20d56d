"""`bigtrain profile`: where the time of a step goes, which operators cost most, and what the memory is for.

    warm up        steps that do not count: compilation, first allocations
    undisturbed    steps timed by the meter: how long a step and its parts take
    traced         the same under torch.profiler: the operators, and the communication that no computation overlaps
    one more       with the allocations recorded

A step is that of `bigtrain train` with the user's settings and data, from initial weights. The profile runs in a
folder of its own beside the run directory, which is never touched, and saves no checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.profiler import ProfilerActivity, record_function

from bigtrain.base import BigtrainError, to_json, write_atomically
from bigtrain.config import Settings
from bigtrain.data import RankBatch
from bigtrain.observe import FORWARD_BACKWARD, OPTIMIZER, Reading, datasheet_flops
from bigtrain.train import Agreement, TrainingRun, loss_scale, open_run
from bigtrain.trials.kept_memory import KeptMemory
from bigtrain.trials.trace import STEP, TraceSummary, read_trace, summarize
from bigtrain.trials.trial import changed

HISTORY_EVENTS = 200_000
"""Allocations that the snapshot holds."""


@dataclass(frozen=True)
class OperatorCost:
    """The cost of one operator."""

    name: str
    seconds: float
    """For each step."""
    share: float
    """Of the traced step."""
    calls: float
    """For each step."""
    flops_per_second: float | None
    """Of a matrix product."""
    share_of_peak: float | None
    """Over the peak of one device."""


@dataclass(frozen=True)
class Profile:
    """The cost of a few steps: their means, of rank 0."""

    run: str
    world_size: int
    steps: int
    step_seconds: float
    """Without the profiler."""
    traced_step_seconds: float
    """Under the profiler, which slows down what Python has to do."""
    tokens_per_second: float
    mfu: float
    mfu_causal: float
    peak: dict[str, Any]
    breakdown: dict[str, float]
    """Seconds of an undisturbed step; their sum is `step_seconds`."""
    operators: list[OperatorCost]
    peak_bytes: int
    """Most memory in use during a step."""
    memory: dict[str, int]
    """Bytes by what they hold; the last entry is the rest."""
    forward: dict[str, int]
    """Bytes of a micro-batch between its forward and its backward pass: the activations that are kept, and what the
    head needs beside them. At the peak they are part of the rest."""
    files: list[str]


def profile(
    settings: Settings, *, steps: int, warmup: int, out: Path | None = None, report: Callable[[str], None]
) -> Profile | None:
    """Train a few steps and measure them. Under a launcher every rank calls it, and rank 0 has the result.

    Args:
        settings: of the run.
        steps: how many to time, and how many to trace.
        warmup: how many to do before.
        out: where to write; None: RUN-profile, beside the run directory.
        report: called with each line of progress, on rank 0.

    Raises:
        BigtrainError: as `train` does, or the schedule has too few steps.
    """
    folder = out or settings.run_dir.with_name(f"{settings.run_dir.name}-profile")
    total = warmup + 2 * steps + 1
    if settings.total_steps < total:
        raise BigtrainError(
            "the schedule has too few steps to profile",
            found=f"{settings.total_steps} steps",
            wanted=f"at least {total}: {warmup} to warm up, {steps} to time, {steps} to trace, 1 to watch memory",
            fix="lower --warmup and --steps, or give train.steps=100",
        )
    run_dir = folder / "run"
    with open_run(_trial(settings, run_dir)) as run:
        say = report if run.topology.rank == 0 else lambda line: None
        say(f"{warmup} steps to warm up")
        for _ in range(warmup):
            _step(run)
        say(f"{steps} steps, timed")
        readings = [_step(run) for _ in range(steps)]
        say(f"{steps} steps, traced")
        trace = folder / f"trace-rank-{run.topology.rank:05d}.json.gz"
        _trace(run, steps, trace)
        say("one step, its memory watched")
        snapshot = folder / f"memory-rank-{run.topology.rank:05d}.pickle"
        memory = _memory(run, snapshot)
        run.close("profiled", 0)
        found = _profile(run, str(settings.run_dir), readings, trace, memory)
        speaks = run.topology.rank == 0
    if not speaks:
        return None
    shutil.rmtree(run_dir, ignore_errors=True)
    files = sorted(str(path) for path in folder.iterdir() if path.name.startswith(("trace-", "memory-")))
    found = Profile(**{**vars(found), "files": files})
    write_atomically(folder / "profile.json", json.dumps(to_json(found), indent=2))
    return found


def _trial(settings: Settings, run_dir: Path) -> Settings:
    """The settings with another run directory and full batches, without saving, evaluation and tracking."""
    return changed(
        settings,
        {
            "run_dir": str(run_dir),
            "train": {"batch_size_warmup": [], "stop_after": None},
            "checkpoint": {"every_steps": None, "every_minutes": None, "dir": None, "local_dir": None},
            "evaluate": {"every_steps": None},
            "tracking": {"wandb": "disabled"},
        },
    )


def _step(run: TrainingRun) -> Reading:
    batch, agreed = _fetch(run)
    return run.record(run.optimize(batch, agreed), agreed)


def _fetch(run: TrainingRun) -> tuple[RankBatch, Agreement]:
    batch, agreed = run.fetch()
    if agreed.stop_reason:
        raise BigtrainError(f"stopped by {agreed.stop_reason} before the profile was whole").on_all_ranks()
    return batch, agreed


def _trace(run: TrainingRun, steps: int, path: Path) -> None:
    activities = [ProfilerActivity.CPU]
    if run.topology.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        for _ in range(steps):
            with record_function(STEP):
                _step(run)
    profiler.export_chrome_trace(str(path))


@dataclass(frozen=True)
class StepMemory:
    """The memory of one step."""

    peak: int
    parts: dict[str, int]
    """Of the peak, as far as is known."""
    forward: dict[str, int]
    """Of a micro-batch after its forward pass."""


def _memory(run: TrainingRun, snapshot: Path) -> StepMemory:
    device, engine = run.topology.device, run.training.engine
    batch, agreed = _fetch(run)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.memory._record_memory_history(max_entries=HISTORY_EVENTS)
    else:
        _forget_peak_of_process()
    scale, kept = loss_scale(agreed.labels.of_terms(batch.loss_terms), device), KeptMemory()
    for micro_batch in batch.micro_batches:
        inputs = micro_batch.to(device).model_inputs()
        engine.forward_backward(inputs, scale=scale, forward=kept.watching(run.training.model, inputs))
    parts = engine.held_bytes()
    engine.step(run.training.learning_rate(run.step + 1))
    if on_gpu:
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.memory._dump_snapshot(str(snapshot))  # type: ignore[no-untyped-call]
        torch.cuda.memory._record_memory_history(enabled=None)
    else:
        peak = _peak_of_process()
    rest = "activations and temporary" if on_gpu else "activations, libraries and all else"
    return StepMemory(peak, {**parts, rest: peak - sum(parts.values())}, kept.bytes)


def _profile(run: TrainingRun, name: str, readings: list[Reading], trace: Path, memory: StepMemory) -> Profile:
    def mean(of: Callable[[Reading], float]) -> float:
        return sum(map(of, readings)) / len(readings)

    summary = summarize(read_trace(trace), (FORWARD_BACKWARD, OPTIMIZER))
    step_seconds = mean(lambda reading: reading.step_seconds)
    tokens = mean(lambda reading: reading.tokens_per_second * reading.step_seconds)
    meter = run.recorder.meter
    flops = meter.flops_at(max(1, run.step))
    return Profile(
        run=name,
        world_size=run.topology.world_size,
        steps=len(readings),
        step_seconds=step_seconds,
        traced_step_seconds=summary.step_seconds,
        tokens_per_second=tokens / step_seconds,
        mfu=tokens / step_seconds * flops.per_token / meter.peak.flops,
        mfu_causal=tokens / step_seconds * flops.causal_per_token / meter.peak.flops,
        peak=meter.peak.as_record(),
        breakdown=breakdown(
            step_seconds,
            mean(lambda reading: reading.data_seconds),
            mean(lambda reading: reading.forward_backward_seconds),
            mean(lambda reading: reading.optimizer_seconds),
            summary.communication,
        ),
        operators=_rows(summary, run),
        peak_bytes=memory.peak,
        memory=memory.parts,
        forward=memory.forward,
        files=[],
    )


def breakdown(
    step: float, data: float, forward_backward: float, optimizer: float, communication: dict[str, float]
) -> dict[str, float]:
    """The seconds of a step by part.

    Args:
        step: the whole of it.
        data: waiting for the loader.
        forward_backward: of the meter, with the communication in it.
        optimizer: likewise.
        communication: what no computation overlaps, by the part that it is in, from a trace. Its steps are not those
            that were timed, so no part goes below zero.
    """
    parts = {FORWARD_BACKWARD: forward_backward, OPTIMIZER: optimizer}
    parts["other"] = step - data - forward_backward - optimizer
    hidden_in = {**communication, "other": communication.get("", 0.0)}
    inside = {part: min(seconds, hidden_in.get(part, 0.0)) for part, seconds in parts.items()}
    return {
        "data": data,
        FORWARD_BACKWARD: forward_backward - inside[FORWARD_BACKWARD],
        "communication": sum(inside.values()),
        OPTIMIZER: optimizer - inside[OPTIMIZER],
        "other": parts["other"] - inside["other"],
    }


def _rows(summary: TraceSummary, run: TrainingRun) -> list[OperatorCost]:
    """The operators, and the time without one."""
    on_gpu = run.topology.device.type == "cuda"
    peak = run.recorder.meter.peak
    of_one = peak.flops / run.topology.world_size
    name = torch.cuda.get_device_name(run.topology.device) if on_gpu else None
    of_float8 = datasheet_flops(name, "fp8")

    rows = [
        OperatorCost(
            "(the GPU waits)" if on_gpu else "(Python, between operators)",
            *_cost(summary.idle_seconds, summary),
            0,
            None,
            None,
        )
    ]
    for operator in summary.operators:
        best = of_float8 if operator.name.startswith("aten::_scaled_mm") else of_one
        share_of_peak = operator.rate / best if operator.rate and best else None
        cost = _cost(operator.seconds, summary)
        rows.append(OperatorCost(operator.name, *cost, operator.calls, operator.rate, share_of_peak))
    return sorted(rows, key=lambda row: -row.seconds)


def _cost(seconds: float, summary: TraceSummary) -> tuple[float, float]:
    return seconds, seconds / summary.step_seconds


def _forget_peak_of_process() -> None:
    """Linux: from here on the peak of the resident memory counts again."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def _peak_of_process() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)

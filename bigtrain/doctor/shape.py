"""Checks that the configuration fits these ranks: the batch divides over them, and the model fits their memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from bigtrain.base import BigtrainError, gibibytes
from bigtrain.config import Settings, divide_work
from bigtrain.doctor.check import CheckContext, Measured
from bigtrain.doctor.disks import checkpoint_bytes
from bigtrain.doctor.finding import CheckFinding
from bigtrain.estimate import forecast_memory, layout_of, remedies, workload_of


def measure_batch(context: CheckContext) -> dict[str, int]:
    """Compute how the global batch of the first length of samples is divided, and check those of all lengths. Only the
    leader does it, because it is arithmetic.

    Raises:
        BigtrainError: the batch, or the ranks, do not divide.
    """
    settings, world = context.settings, context.ranks
    assert settings is not None
    engine, train = settings.engine, settings.train
    of_all, of_first = (
        divide_work(
            batches,
            train.micro_batch_size,
            world,
            tensor_parallel_size=engine.tensor_parallel_size,
            sequence_parallel_size=engine.sequence_parallel_size,
            zero_hpz_partition_size=engine.zero_hpz_partition_size,
        )
        for batches in (settings.batches, train.batches)
    )
    return {
        "ranks": of_all.data_parallel_size,
        "rows": train.micro_batch_size,
        "accumulated": of_first.accumulation_steps[-1],
    }


def assess_batch(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Show how the batch divides; `measure_batch` raises where it does not."""
    assert context.settings is not None
    for each in measured.values():
        yield CheckFinding(
            "batch",
            "ok",
            f"{context.settings.train.global_batch_size} samples are {each['ranks']} rank(s) x micro-batches of "
            f"{each['rows']} x {each['accumulated']} accumulated",
        )


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a rank needs, by the planner."""

    states: float
    """On its device for as long as it trains: weights, gradients, master weights and moments."""
    device: float
    """There at the peak of a step: with activations, logits and buffers."""
    host: float
    """In its host's memory: the image of a save, and what is offloaded."""


def rank_memory(settings: Settings, world_size: int) -> RankMemory:
    """The memory of the rank that needs most.

    Raises:
        BigtrainError: the ranks or the global batch do not divide.
    """
    stages = [settings.at_step(stage.first_step) for stage in settings.stages]
    each = [(workload_of(staged), layout_of(staged, world_size)) for staged in stages]
    work, layout = max(each, key=lambda pair: forecast_memory(*pair).allocated)
    needed = forecast_memory(work, layout)
    kept_here = forecast_memory(work, replace(layout, offload_optimizer=False, offload_weights=False))
    image = checkpoint_bytes(settings) / world_size
    return RankMemory(needed.states, needed.allocated, image + kept_here.states - needed.states)


def measure_memory(context: CheckContext) -> dict[str, Any]:
    """Return the free memory of this rank's device and host, in bytes."""
    here: dict[str, Any] = {"host": min(psutil.virtual_memory().available, _cgroup_left())}
    if context.device.type == "cuda":
        import torch

        here["device"], _ = torch.cuda.mem_get_info(context.device)
    return here


def _cgroup_left() -> int:
    """The bytes that the container may still allocate; a very large number where it has no limit."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            return int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return 1 << 62


def assess_memory(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Check that every device and host has memory for the states, which stay there, and for the peak of a step."""
    settings, meeting = context.settings, context.meeting
    assert settings is not None
    try:
        each = rank_memory(settings, meeting.world_size)
    except BigtrainError:
        return  # the check of the batch says what does not divide
    short: dict[str, _Shortage] = {}
    for ranks in meeting.hosts.values():
        here = [rank for rank in ranks if rank in measured]
        if not here:
            continue
        on_device = [rank for rank in here if "device" in measured[rank]]
        for rank in on_device:
            _note_shortage(short, "GPU", each.states, each.device, measured[rank]["device"], [rank])
        free = min(measured[rank]["host"] for rank in here)
        states, peak = (0.0, 0.0) if on_device else (each.states, each.device)
        count = len(ranks)
        _note_shortage(short, "host", count * (each.host + states), count * (each.host + peak), free, here)
    for where, found in short.items():
        yield CheckFinding(
            "memory",
            "failed" if found.states > found.free else "warning",
            f"states, activations and the image of a save take {gibibytes(found.peak)} of a {where} "
            f"({gibibytes(found.states)} of it all the time), which has {gibibytes(found.free)} left, on "
            f"{meeting.label(found.ranks)}",
            "all of it, at the peak of a step",
            f"cheapest first: {_remedies(settings, context)}",
        )
    context.measured["state_bytes"] = {"device": round(each.states), "host": round(each.host)}
    what = f"{gibibytes(each.device)} a device ({gibibytes(each.states)} all the time) and {gibibytes(each.host)}"
    yield CheckFinding("memory", "ok", f"by the planner a rank takes {what} of its host's memory")


@dataclass(frozen=True)
class _Shortage:
    """Bytes of a device or host that has too few of them."""

    states: float
    peak: float
    free: float
    ranks: list[int]


def _note_shortage(
    short: dict[str, _Shortage], where: str, states: float, peak: float, free: float, ranks: list[int]
) -> None:
    if peak > free:
        worst = short.get(where, _Shortage(states, peak, free, []))
        short[where] = _Shortage(
            max(worst.states, states), max(worst.peak, peak), min(worst.free, free), [*worst.ranks, *ranks]
        )


def _remedies(settings: Settings, context: CheckContext) -> str:
    world = context.meeting.world_size
    advice = remedies(
        settings,
        data_size=layout_of(settings, world).data,
        devices=world,
        on_gpu=context.device.type == "cuda",
    )
    return "; ".join([*map(str, advice), "more ranks"])

"""Checks that the configuration fits these ranks: the batch divides over them, and the model fits their memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bigtrain.base import gibibytes
from bigtrain.config import Settings, divide_work
from bigtrain.doctor.check import CheckContext, Measured
from bigtrain.doctor.disks import STATE_BYTES, checkpoint_bytes
from bigtrain.doctor.finding import CheckFinding

NEARLY = 0.85
"""The share of the memory above which the activations, which the estimate leaves out, will hardly fit."""


def measure_batch(context: CheckContext) -> dict[str, int]:
    """Compute how the global batch is divided. Only the leader does it, because it is arithmetic.

    Raises:
        BigtrainError: the batch, or the ranks, do not divide.
    """
    settings, world = context.settings, context.ranks
    assert settings is not None
    engine, train = settings.engine, settings.train
    division = divide_work(
        train.batches,
        train.micro_batch_size,
        world,
        tensor_parallel_size=engine.tensor_parallel_size,
        sequence_parallel_size=engine.sequence_parallel_size,
        zero_hpz_partition_size=engine.zero_hpz_partition_size,
    )
    return {
        "ranks": division.data_parallel_size,
        "rows": train.micro_batch_size,
        "accumulated": division.accumulation_steps[-1],
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


def state_bytes(settings: Settings, world_size: int) -> tuple[int, int]:
    """Return the bytes that a rank holds for as long as it trains: on its device, and in its host's memory.

    These are weights, float32 gradients, master weights and moments, divided as ZeRO does (Rajbhandari et al., 2020,
    section 3), and the image of a save. Beside a frozen base all but the weights are of the adapter. Activations and
    buffers are not in it; the dry run tries them.
    """
    from bigtrain.model import count_learning_parameters, count_parameters

    engine = settings.engine
    parameters = count_parameters(settings.model) // engine.tensor_parallel_size
    learning = count_learning_parameters(settings.model, settings.adapter) // engine.tensor_parallel_size
    ranks = max(1, world_size // (engine.tensor_parallel_size * engine.sequence_parallel_size))
    compute = 4 if engine.precision == "fp32" else 2
    masters = STATE_BYTES[settings.optimizer.name] - (4 if engine.precision == "fp32" and engine.zero_stage == 0 else 0)
    weights = compute * parameters // (ranks if engine.zero_stage == 3 else 1)
    gradients = 4 * learning // (ranks if engine.zero_stage >= 2 else 1)
    optimizer = masters * learning // (ranks if engine.zero_stage >= 1 else 1)
    image = checkpoint_bytes(settings) // world_size
    device, host = weights + gradients + optimizer, image
    if engine.offload_optimizer == "cpu":
        device, host = device - optimizer, host + optimizer
    if engine.offload_param == "cpu":
        device, host = device - weights, host + weights
    return device, host


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
    """Check that every device and host has memory for the state that stays there all the time."""
    settings, meeting = context.settings, context.meeting
    assert settings is not None
    device, host = state_bytes(settings, meeting.world_size)
    short: dict[str, tuple[int, int, list[int]]] = {}
    for ranks in meeting.hosts.values():
        here = [rank for rank in ranks if rank in measured]
        if not here:
            continue
        on_device = [rank for rank in here if "device" in measured[rank]]
        for rank in on_device:
            _add_shortage(short, "GPU", device, measured[rank]["device"], [rank])
        needed = len(ranks) * (host + (0 if on_device else device))
        _add_shortage(short, "host", needed, min(measured[rank]["host"] for rank in here), here)
    for where, (needed, free, ranks) in short.items():
        yield CheckFinding(
            "memory",
            "failed" if needed > free else "warning",
            f"weights, gradients, optimizer and the image of a save take {gibibytes(needed)} of a {where}, which has "
            f"{gibibytes(free)} left, on {meeting.label(ranks)}",
            f"at most {NEARLY:.0%}, since activations come on top",
            "raise engine.zero_stage, offload (engine.offload_optimizer cpu), or use more ranks; the dry run before "
            "step 1 names settings that would help",
        )
    context.measured["state_bytes"] = {"device": device, "host": host}
    what = f"{gibibytes(device)} a device and {gibibytes(host)} of its host's memory"
    yield CheckFinding("memory", "ok", f"a rank's state takes {what}, without activations")


def _add_shortage(
    short: dict[str, tuple[int, int, list[int]]], where: str, needed: int, free: int, ranks: list[int]
) -> None:
    if needed > NEARLY * free:
        worst, least, others = short.get(where, (needed, free, []))
        short[where] = (max(worst, needed), min(least, free), [*others, *ranks])

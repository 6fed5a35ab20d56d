"""Whether what the configuration asks for fits these ranks: the batch over them, the model into their memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from bigtrain.base.errors import BigtrainError
from bigtrain.base.format import gibibytes
from bigtrain.config import Settings
from bigtrain.data.batch.loader import require_divisible
from bigtrain.doctor.check import Measured, Patient
from bigtrain.doctor.disks import STATE_BYTES, checkpoint_bytes
from bigtrain.doctor.finding import Finding
from bigtrain.model import count_parameters

NEARLY = 0.85
"""The share of the memory beyond which the activations, which are not in the estimate, will hardly fit."""


def measure_batch(patient: Patient) -> dict[str, int]:
    """How the global batch is cut; on the leader alone, for it is arithmetic.

    Raises:
        BigtrainError: it does not divide.
    """
    settings, world = patient.settings, patient.meeting.world_size
    assert settings is not None
    engine, train = settings.engine, settings.train
    shared = engine.tensor_parallel_size * engine.sequence_parallel_size
    if world % shared:
        raise BigtrainError(
            "the ranks do not divide into groups that share their samples",
            found=f"{world} ranks",
            wanted=f"a multiple of {shared}, for engine.tensor_parallel_size or sequence_parallel_size",
            fix=f"start {-(-world // shared) * shared} ranks, or make that size smaller",
        )
    require_divisible(train.batches, train.micro_batch_size, world // shared)
    if world // shared % engine.zero_hpz_partition_size:
        raise BigtrainError(
            "the ranks do not divide into groups that hold a second copy of the weights",
            found=f"{world // shared} ranks",
            wanted=f"a multiple of engine.zero_hpz_partition_size {engine.zero_hpz_partition_size}",
            fix="set it to the number of ranks on a node",
        )
    accumulated = train.global_batch_size // (world // shared * train.micro_batch_size)
    return {"ranks": world // shared, "rows": train.micro_batch_size, "accumulated": accumulated}


def judge_batch(measured: Measured, patient: Patient) -> Iterator[Finding]:
    """It divides, or we would not be here."""
    assert patient.settings is not None
    for each in measured.values():
        yield Finding(
            "batch",
            "ok",
            f"{patient.settings.train.global_batch_size} samples are {each['ranks']} rank(s) x micro-batches of "
            f"{each['rows']} x {each['accumulated']} accumulated",
        )


def state_bytes(settings: Settings, world_size: int) -> tuple[int, int]:
    """Bytes that a rank holds for as long as it trains: on its device, and in its host's memory.

    Weights, gradients in float32, master weights and moments, spread as ZeRO does (Rajbhandari et al., 2020, section
    3), and the image that a save is written from. Activations and buffers come on top; the dry run tries those.
    """
    engine = settings.engine
    parameters = count_parameters(settings.model) // engine.tensor_parallel_size
    ranks = max(1, world_size // (engine.tensor_parallel_size * engine.sequence_parallel_size))
    compute = 4 if engine.precision == "fp32" else 2
    masters = STATE_BYTES[settings.optimizer.name] - (4 if engine.precision == "fp32" and engine.zero_stage == 0 else 0)
    weights = compute * parameters // (ranks if engine.zero_stage == 3 else 1)
    gradients = 4 * parameters // (ranks if engine.zero_stage >= 2 else 1)
    optimizer = masters * parameters // (ranks if engine.zero_stage >= 1 else 1)
    image = checkpoint_bytes(settings) // world_size
    device, host = weights + gradients + optimizer, image
    if engine.offload_optimizer == "cpu":
        device, host = device - optimizer, host + optimizer
    if engine.offload_param == "cpu":
        device, host = device - weights, host + weights
    return device, host


def measure_memory(patient: Patient) -> dict[str, Any]:
    """What this rank's device and its host have left."""
    here: dict[str, Any] = {"host": min(psutil.virtual_memory().available, _cgroup_left())}
    if patient.device.type == "cuda":
        here["device"], _ = torch.cuda.mem_get_info(patient.device)
    return here


def _cgroup_left() -> int:
    """What the container may still take; far more than there is where nobody limits it."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            return int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return 1 << 62


def judge_memory(measured: Measured, patient: Patient) -> Iterator[Finding]:
    """Every device and every host has room for what will lie there all the time."""
    settings, meeting = patient.settings, patient.meeting
    assert settings is not None
    device, host = state_bytes(settings, meeting.world_size)
    short: dict[str, tuple[int, int, list[int]]] = {}
    for ranks in meeting.hosts.values():
        here = [rank for rank in ranks if rank in measured]
        if not here:
            continue
        on_device = [rank for rank in here if "device" in measured[rank]]
        for rank in on_device:
            _note(short, "GPU", device, measured[rank]["device"], [rank])
        needed = len(ranks) * (host + (0 if on_device else device))
        _note(short, "host", needed, min(measured[rank]["host"] for rank in here), here)
    for where, (needed, free, ranks) in short.items():
        yield Finding(
            "memory",
            "failed" if needed > free else "warning",
            f"weights, gradients, optimizer and the image of a save take {gibibytes(needed)} of a {where}, which has "
            f"{gibibytes(free)} left, on {meeting.who(ranks)}",
            f"at most {NEARLY:.0%}, since activations come on top",
            "raise engine.zero_stage, offload (engine.offload_optimizer cpu), or use more ranks; bigtrain tries a step "
            "before the first and says what would help",
        )
    patient.measured["state_bytes"] = {"device": device, "host": host}
    what = f"{gibibytes(device)} a device and {gibibytes(host)} of its host's memory"
    yield Finding("memory", "ok", f"a rank's state takes {what}, without activations")


def _note(short: dict[str, tuple[int, int, list[int]]], where: str, needed: int, free: int, ranks: list[int]) -> None:
    if needed > NEARLY * free:
        worst, least, others = short.get(where, (needed, free, []))
        short[where] = (max(worst, needed), min(least, free), [*others, *ranks])

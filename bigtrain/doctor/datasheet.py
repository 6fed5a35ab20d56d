"""The datasheet of a device that nobody has published, from what the checks measured: for `bigtrain plan`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from bigtrain.base import BigtrainError, write_asked_for
from bigtrain.observe import cpu_name

COPIED_BYTES = 1 << 28
"""Of the tensor whose copy measures the memory."""
ROUNDS = 5
WIDEST_SHARE = 0.8
"""What a large matrix product reaches of a peak, where the peak itself is not known."""


def measure_memory_speed(device: torch.device, local_ranks: int) -> dict[str, Any]:
    """Return the bandwidth of a rank's memory in bytes per second, read and written, and its size.

    Args:
        device: of the rank.
        local_ranks: ranks of its host, which share the host's memory where the device is a CPU.
    """
    source = torch.ones(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        size, units = properties.total_memory, properties.multi_processor_count
    else:
        size, units = psutil.virtual_memory().total // local_ranks, 1
    return {"memory_bytes_per_second": 2 * COPIED_BYTES / best, "memory_bytes": size, "units": units}


def datasheet_of(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping of the device's name to its datasheet, in the keys of bigtrain/estimate/devices.yaml.

    Args:
        measured: of all checks.

    Raises:
        BigtrainError: the check of the matrix product was left out or has failed.
    """
    device, network = measured.get("device"), measured.get("network")
    if device is None:
        raise BigtrainError(
            "there is no datasheet to write: the speed of a matrix product was not measured",
            wanted="the check matmul",
            fix="run it without --skip matmul, and see why it failed",
        )
    product = device["flops"] / 1e12
    memory = device["memory_bytes_per_second"] / 1e9
    link = memory / 2
    if network is not None and network["world_size"] > 1:
        ranks = network["world_size"]
        link = 2 * (ranks - 1) / ranks * network["bytes"] / network["all_reduce_seconds"] / 1e9
    kind = {"tf32": "fp32"}.get(device["kind"], device["kind"])
    sheet = {
        "tflops": {kind: _rounded(product / WIDEST_SHARE)},
        "matmul_tflops": {kind: _rounded(product)},
        "memory_mib": int(device["memory_bytes"] / 2**20),
        "memory_gbs": _rounded(memory),
        "link_gbs": _rounded(link),
        "multiprocessors": device["units"],
        "source": "measured by bigtrain doctor",
    }
    return {device["name"]: sheet}


def write_datasheet(file: Path, measured: Mapping[str, Any]) -> None:
    """Write what was measured as a file of datasheets. Raises BigtrainError where it cannot be written."""
    text = "# For `bigtrain plan --datasheet FILE`, and for BIGTRAIN_DATASHEETS.\n"
    text += yaml.safe_dump(datasheet_of(measured), sort_keys=False)
    write_asked_for(file, text)


def name_of(device: torch.device) -> str:
    """The name that datasheets have for a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")

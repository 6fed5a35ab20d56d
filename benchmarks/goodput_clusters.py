"""What the goodput model says of clusters: costs that were measured here, carried over, and published failures.

Carried over is little, and each item is written down: how fast a GPU's share of the state is copied (measured on this
kind of machine, `benchmarks/results/checkpoint.json`, in ordinary memory), how fast a file system takes it (2 TB/s for
16,384 GPUs: what Meta's Tectonic sustains for Llama 3), how long a start takes on many machines, and how many failures
are hangs that are noticed only at the bound. Data stalls and evaluations are no failures, and not in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from record import RESULTS

from bigtrain.estimate.goodput import Costs, expected_goodput, optimal_interval

HOUR = 3600.0
BYTES_PER_PARAMETER = 12
"""Of a checkpoint with AdamW: weights and two moments in float32."""
FILE_SYSTEM_BYTES_PER_SECOND_AND_GPU = 2e12 / 16_384
HANGS = 0.1
"""Of all failures, those which nothing but the watchdog notices."""
HANG_BOUND_SECONDS = 600.0
CRASH_DETECTION_SECONDS = 2.0


@dataclass(frozen=True)
class Cluster:
    """A job of a size that is trained on so many GPUs."""

    gpus: int
    parameters: float
    restart_seconds: float
    """From the launcher's word to the first step: a node from the reserve, processes, imports, the checkpoint."""
    target: float | None


CLUSTERS = (
    Cluster(64, 8e9, 120, 0.97),
    Cluster(1024, 70e9, 300, 0.95),
    Cluster(16_384, 405e9, 600, None),
)
FAILURES = {
    "one in 15,000 GPU-hours (the target's)": 15_000 * HOUR,
    "OPT-175B: 105 restarts, 2 months, 992 GPUs": 992 * 60 * 24 * HOUR / 105,
    "Meta's RSC-1: 6.5 in 1,000 node-days": 8 * 24 * HOUR * 1000 / 6.5,
    "Llama 3: 419 in 54 days, 16,384 GPUs": 16_384 * 54 * 24 * HOUR / 419,
}
"""Seconds of one GPU between failures. OPT-175B: Zhang et al. 2022, and its logbook; RSC-1: Kokolis et al. 2024, arXiv
2410.21680, 8 GPUs a node; Llama 3: Dubey et al. 2024, unexpected interruptions."""


def costs_of(cluster: Cluster) -> Costs:
    """What a save and a failure cost there."""
    saves = json.loads((RESULTS / "checkpoint.json").read_text())
    copied = saves["owned_bytes_of_a_rank"] / saves["saves"]["bigtrain"]["stall_seconds"]["median"]  # bytes a second
    state = cluster.parameters * BYTES_PER_PARAMETER / cluster.gpus
    stall = state / copied
    return Costs(
        stall_seconds=stall,
        durable_seconds=stall + state / FILE_SYSTEM_BYTES_PER_SECOND_AND_GPU,
        detection_seconds=HANGS * HANG_BOUND_SECONDS + (1 - HANGS) * CRASH_DETECTION_SECONDS,
        restart_seconds=cluster.restart_seconds,
    )


def predictions() -> list[dict[str, Any]]:
    """A row for each cluster and each rate of failures."""
    rows = []
    for cluster in CLUSTERS:
        for name, seconds_of_a_gpu in FAILURES.items():
            costs, mtbf = costs_of(cluster), seconds_of_a_gpu / cluster.gpus
            interval = max(optimal_interval(costs.stall_seconds, mtbf), costs.durable_seconds)
            row: dict[str, Any] = {
                "gpus": cluster.gpus,
                "parameters": cluster.parameters,
                "failures": name,
                "mtbf_hours": round(mtbf / HOUR, 2),
                "stall_seconds": round(costs.stall_seconds, 3),
                "durable_seconds": round(costs.durable_seconds, 1),
                "detection_seconds": round(costs.detection_seconds, 1),
                "restart_seconds": costs.restart_seconds,
                "interval_seconds": round(interval, 1),
                "goodput": round(expected_goodput(costs, interval, mtbf).training, 5),
            }
            if cluster.target is not None:
                row |= {"target": cluster.target, "restart_limit_seconds": restart_limit(cluster, mtbf)}
            rows.append(row)
    return rows


def restart_limit(cluster: Cluster, mtbf: float) -> float:
    """The longest restart, in whole seconds, with which the target still holds."""
    low, high = 0.0, mtbf
    for _ in range(60):
        middle = (low + high) / 2
        costs = Costs(**{**vars(costs_of(cluster)), "restart_seconds": middle})
        interval = max(optimal_interval(costs.stall_seconds, mtbf), costs.durable_seconds)
        holds = expected_goodput(costs, interval, mtbf).training >= (cluster.target or 0)
        low, high = (middle, high) if holds else (low, middle)
    return float(int(low))

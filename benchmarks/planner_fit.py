"""Fits the constants of the planner to published measurements, and says how well they serve sources they never saw.

    rows of some sources -> least squares in the logarithm, soft L1, each source with the same weight, a weak prior
    the same without a group of sources, for each group -> the error on the sources left out

The prior is a factor around `PRIOR`: what no row decides stays where physics put it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from planner_memory import CapacityMark, MemoryCase
from planner_rows import Measured, Row, number, predicted
from scipy.optimize import least_squares

from bigtrain.base import BigtrainError
from bigtrain.estimate import FITTED, Constants, Group, device, interconnect

PRIOR = replace(
    FITTED,
    matmul_share=0.92,
    wave_loss=0.5,
    depth_loss=128.0,
    unaligned_share=0.75,
    flash1_share=0.40,
    flash2_share=0.58,
    flash3_share=0.55,
    older_instructions=0.62,
    short_sequence=512.0,
    score_passes_fused=16.0,
    score_passes_unfused=36.0,
    memory_share=0.80,
    compiled_passes=1.2,
    fused_passes=1.2,
    eager_passes=1.1,
    logit_passes=16.0,
    network_share=0.92,
    congestion=0.03,
    concurrency=1.8,
    tensor_overlap=0.8,
    contention=1.4,
    skew=80e-6,
    step_overhead=0.01,
    straggling=0.004,
    link_share=0.79,
    switch_reduction_gain=1.33,
    collective_launch=10e-6,
    link_latency=2e-6,
    network_latency=15e-6,
    link_ramp=25e-6,
    network_ramp=250e-6,
)
"""What datasheets, papers, measurements of single kernels and counts of their reads and writes say, before any fit.
Attention without a flash kernel passes all scores 6.5 times forward and 10 times backward with a fused softmax and
dropout (16); with a kernel for scale, mask, a softmax in float32 and casts each, 36 times."""
PRIOR_SPREAD = math.log(1.5)
KNOWN = {
    "flash1_share", "flash2_share", "flash3_share", "older_instructions", "link_share", "network_share", "link_ramp",
    "network_ramp", "network_latency", "wave_loss", "depth_loss", "memory_share",
}  # fmt: skip
"""Constants that measurements of single kernels or collectives decide already."""
KNOWN_SPREAD = math.log(1.15)
NOISE = 0.08
"""What a row's logarithm differs by where everything is right: other versions, other clusters."""
TIME = (
    "matmul_share", "wave_loss", "depth_loss", "unaligned_share", "flash1_share", "flash2_share", "flash3_share",
    "older_instructions", "short_sequence", "score_passes_fused", "score_passes_unfused", "memory_share",
    "compiled_passes", "fused_passes", "eager_passes", "logit_passes", "contention", "congestion",
    "concurrency", "tensor_overlap", "skew", "step_overhead", "straggling",
)  # fmt: skip
"""Constants that throughput decides."""
AT_MOST_ONE = {
    "matmul_share", "unaligned_share", "older_instructions", "memory_share", "network_share", "link_share",
    "tensor_overlap",
}  # fmt: skip


NETWORK = (
    "link_share", "network_share", "switch_reduction_gain", "congestion", "collective_launch", "link_latency",
    "network_latency", "link_ramp", "network_ramp",
)  # fmt: skip
"""Constants that sweeps of collectives decide."""


def thinned(rows: Sequence[Measured], most: int = 40) -> list[Measured]:
    """At most so many rows of each source, spread over it: each source has the same weight in a fit anyway."""
    per_source = Counter(row.case.source for row in rows)
    seen: Counter[str] = Counter()
    found = []
    for row in rows:
        number, count = seen[row.case.source], per_source[row.case.source]
        if number * most // count != (number + 1) * most // count or count <= most:
            found.append(row)
        seen[row.case.source] += 1
    return found


def fit_time(rows: Sequence[Measured], prior: Constants, near: Constants | None = None) -> Constants:
    """Return constants fitted to rows.

    Args:
        rows: with their measured tokens per second.
        prior: the values from which it starts and to which it is drawn.
        near: constants that are known to be close to the answer, from which a few iterations are enough.
    """
    per_source = Counter(row.case.source for row in rows)
    weights = np.array([1 / math.sqrt(per_source[row.case.source]) for row in rows])
    weights *= np.array([1.0 if row.case.complete else 0.5 for row in rows]) * 3
    wanted = np.log([row.tokens_per_second for row in rows])
    names = TIME
    start = np.log([getattr(prior, name) for name in names])
    first = start if near is None else np.log([getattr(near, name) for name in names])
    spread = np.array([KNOWN_SPREAD if name in KNOWN else PRIOR_SPREAD for name in names])

    def constants_at(point: np.ndarray) -> Constants:
        return replace(prior, **{name: float(math.exp(value)) for name, value in zip(names, point, strict=True)})

    def residuals(point: np.ndarray) -> np.ndarray:
        constants = constants_at(point)
        found = np.log([predicted(row.case, constants) for row in rows])
        error = (found - wanted) / NOISE
        soft = np.sign(error) * np.sqrt(2 * (np.sqrt(1 + error**2) - 1))  # soft L1, the prior stays quadratic
        return np.concatenate([weights * soft, (point - start) / spread])

    highest = np.array([0.0 if name in AT_MOST_ONE else math.inf for name in names])
    found = least_squares(
        residuals,
        np.minimum(first, highest - 1e-6),
        bounds=(-np.inf, highest),
        diff_step=0.02,
        max_nfev=20 if near is None else 3,
    )
    return constants_at(found.x)


def of_network(of: Constants, otherwise: Constants) -> Constants:
    """Constants of the network from the first, all others from the second."""
    return replace(otherwise, **{name: getattr(of, name) for name in NETWORK if name not in TIME})


def collective_seconds(row: Row, constants: Constants) -> tuple[float, float] | None:
    """Predicted and measured seconds of a row of collectives.csv; None where it lacks an input."""
    size, gpus, bus = (number(row, name) for name in ("message_bytes", "gpus", "busbw_gbs"))
    if size is None or gpus is None or bus is None:
        return None
    try:
        of = device(row["gpu_kind"])
    except BigtrainError:
        return None
    nodes = int(number(row, "nodes") or 1)
    per_node = max(1, round(gpus / nodes))
    if of.linked_devices > per_node:
        per_node = min(int(gpus), of.linked_devices) if of.linked_devices > 8 else per_node
    connected = replace(interconnect(of), node_size=per_node)
    if re.search(r"off|ring", row["interconnect"].lower()):
        connected = replace(connected, reduces_in_switch=False)
    group = Group(int(gpus), per_node)
    factor = (2 if row["collective"] == "all_reduce" else 1) * (gpus - 1) / gpus
    run = connected.all_reduce if row["collective"] == "all_reduce" else connected.all_gather
    return run(size, group, constants), size * factor / (bus * 1e9)


def fit_network(rows: Sequence[Row], prior: Constants) -> Constants:
    """Return constants fitted to sweeps of collectives, of messages that training sends (a megabyte and more)."""
    used = [row for row in rows if collective_seconds(row, prior) and (number(row, "message_bytes") or 0) >= 2**20]
    start = np.log([getattr(prior, name) for name in NETWORK])

    def constants_at(point: np.ndarray) -> Constants:
        return replace(prior, **{name: float(math.exp(value)) for name, value in zip(NETWORK, point, strict=True)})

    def residuals(point: np.ndarray) -> np.ndarray:
        constants = constants_at(point)
        both = [pair for row in used if (pair := collective_seconds(row, constants))]
        error = np.log([found / measured for found, measured in both]) / 0.15
        soft = np.sign(error) * np.sqrt(2 * (np.sqrt(1 + error**2) - 1))
        return np.concatenate([soft, (point - start) / PRIOR_SPREAD])

    highest = np.array([0.0 if name in AT_MOST_ONE else math.inf for name in NETWORK])
    found = least_squares(residuals, np.minimum(start, highest - 1e-6), bounds=(-np.inf, highest), diff_step=0.01)
    return constants_at(found.x)


MEMORY_CHOICES = {
    "fragmentation": (0.04, 0.08, 0.12, 0.15, 0.18, 0.22),
    "backward_copies": (0.5, 1.0, 2.0),
}
"""Values that are tried, each with each: the marks are yes or no, so there is no slope to follow."""


def fit_memory(sizes: Sequence[MemoryCase], marks: Sequence[CapacityMark], prior: Constants) -> Constants:
    """Return the constants with the least error: medians of the sources' figures, and the share of wrong marks.

    Args:
        sizes: rows with a figure.
        marks: rows that say whether a layout fitted.
        prior: the constants from which it starts.
    """
    figures = [case for case in sizes if case.complete]

    def loss(constants: Constants) -> float:
        errors: dict[str, list[float]] = {}
        for case in figures:
            ratio = case.forecast(constants) / case.measured_gib
            errors.setdefault(case.source, []).append(abs(math.log(ratio)))
        wrong: dict[bool, list[bool]] = {True: [], False: []}
        for mark in marks:
            wrong[mark.fits].append(mark.forecast_fits(constants) != mark.fits)
        shares = [sum(each) / len(each) for each in wrong.values() if each]
        medians = [float(np.median(each)) for each in errors.values()]
        return sum(medians) / max(1, len(medians)) + 2 * sum(shares)

    names = list(MEMORY_CHOICES)
    tried = [replace(prior, **dict(zip(names, values, strict=True))) for values in product(*MEMORY_CHOICES.values())]
    return min(tried, key=loss)

"""The goodput of a job under failures is what a simulation of it comes to."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.estimate.goodput import Costs, expected_goodput, optimal_interval

HOUR = 3600.0


@pytest.mark.parametrize(
    ("save", "mtbf", "interval"),
    [
        # Daly (2006), equation 37, worked out by hand: sqrt(2 d M) (1 + sqrt(d / 2M) / 3 + d / 18 M) - d
        (300.0, 24 * HOUR, 7200 * (1 + 0.041666666666666664 / 3 + 0.001736111111111111 / 9) - 300),
        (1.0, 2.0, 2 * (1 + 0.5 / 3 + 0.25 / 9) - 1),
        (10.0, 5.0, 5.0),
        (11.0, 5.0, 5.0),
    ],
)
def test_the_interval_is_daly_s(save: float, mtbf: float, interval: float) -> None:
    assert optimal_interval(save, mtbf) == pytest.approx(interval)


@given(mtbf=st.floats(60, 1e7), share=st.floats(1e-9, 1e-5))
def test_where_saves_are_cheap_it_is_young_s(mtbf: float, share: float) -> None:
    save = share * mtbf
    assert optimal_interval(save, mtbf) == pytest.approx(math.sqrt(2 * save * mtbf), rel=0.01)


@given(mtbf=st.floats(60, 1e7), save=st.floats(0.01, 1e4))
def test_dearer_saves_come_less_often_and_failures_more_often_bring_more(mtbf: float, save: float) -> None:
    assert optimal_interval(save, mtbf) > 0
    if save * 1.1 < mtbf / 2:
        assert optimal_interval(save, mtbf) < optimal_interval(save * 1.1, mtbf)
        assert optimal_interval(save, mtbf) < optimal_interval(save, mtbf * 1.1)


def simulated_seconds(work: float, interval: float, save: float, mtbf: float, restart: float, seed: int) -> float:
    """How long a job takes that is thrown back to its last save by each failure, on average over many failures."""
    failures = np.random.default_rng(seed).exponential(mtbf, 400_000)
    segment = interval + save
    whole = np.minimum(np.floor(failures / segment), 1e12)  # segments that were saved before each failure
    gained = np.cumsum(whole * interval)
    needed = int(np.searchsorted(gained, work))
    assert needed < len(failures), "the job would not end"
    return float(failures[: needed + 1].sum() + restart * needed)


@pytest.mark.parametrize(("save", "mtbf"), [(5.0, 2000.0), (30.0, 1000.0), (60.0, 600.0), (1.0, 20_000.0)])
def test_the_interval_is_within_two_percent_of_the_best_in_a_simulation(save: float, mtbf: float) -> None:
    chosen = optimal_interval(save, mtbf)
    work = 100_000 * mtbf / 10
    candidates = chosen * np.geomspace(0.2, 5, 25)
    seconds = [simulated_seconds(work, interval, save, mtbf, 60.0, seed=1) for interval in candidates]
    ours = simulated_seconds(work, chosen, save, mtbf, 60.0, seed=1)
    assert ours <= 1.02 * min(seconds)
    waste = [each / work - 1 for each in (ours, seconds[0], seconds[-1])]
    assert waste[1] > 1.4 * waste[0] and waste[2] > 1.4 * waste[0]  # it does matter


def simulated(costs: Costs, interval: float, mtbf: float, *, failures: int, seed: int) -> dict[str, float]:
    """The shares of a job's time, event by event: a clock, the next failure, and what is durable."""
    draw = random.Random(seed)
    spent = {"training": 0.0, "saving": 0.0, "repeated": 0.0, "detection": 0.0, "restart": 0.0}
    for _ in range(failures):
        lived, clock = draw.expovariate(1 / mtbf), 0.0
        saves = []  # when each that has begun is durable
        while (clock := clock + interval) <= lived:
            saves.append(clock + costs.durable_seconds)
            clock += costs.stall_seconds
        kept = sum(durable <= lived for durable in saves)
        spent["training"] += kept * interval
        spent["saving"] += kept * costs.stall_seconds
        spent["repeated"] += lived - kept * (interval + costs.stall_seconds)
        while True:  # until a restart is not struck by a failure of its own
            spent["detection"] += costs.detection_seconds
            struck = draw.expovariate(1 / mtbf)
            spent["restart"] += min(struck, costs.restart_seconds)
            if struck >= costs.restart_seconds:
                break
    whole = sum(spent.values())
    return {name: seconds / whole for name, seconds in spent.items()}


CASES = [
    # seconds: stall, durable, detection, restart; interval; MTBF
    pytest.param(Costs(0.1, 0.7, 0.3, 12), 20, 180, id="this machine, killed every three minutes"),
    pytest.param(Costs(0.2, 30, 60, 300), 150, 0.9 * HOUR, id="16,384 GPUs"),
    pytest.param(Costs(60, 60, 0, 600), 600, 2 * HOUR, id="saves that take a minute"),
    pytest.param(Costs(5, 90, 30, 900), 100, 1200, id="hardly anything but failures"),
    pytest.param(Costs(0.2, 10, 10, 60), 700, 234 * HOUR, id="64 GPUs"),
]


@pytest.mark.parametrize(("costs", "interval", "mtbf"), CASES)
def test_the_formula_is_within_half_a_point_of_a_simulation(costs: Costs, interval: float, mtbf: float) -> None:
    expected = expected_goodput(costs, interval, mtbf)
    failures = 20_000 if mtbf < 10 * HOUR else 1000
    for name, share in simulated(costs, interval, mtbf, failures=failures, seed=4).items():
        assert getattr(expected, name) == pytest.approx(share, abs=0.005), name


@given(
    stall=st.floats(0.01, 100), pending=st.floats(0, 100), detection=st.floats(0, 1000), restart=st.floats(0, 1000),
    interval=st.floats(1, 10_000), mtbf=st.floats(300, 1e7),
)  # fmt: skip
def test_every_second_is_somewhere(
    stall: float, pending: float, detection: float, restart: float, interval: float, mtbf: float
) -> None:
    shares = expected_goodput(Costs(stall, stall + pending, detection, restart), interval, mtbf)
    parts = [shares.training, shares.saving, shares.repeated, shares.detection, shares.restart]
    assert sum(parts) == pytest.approx(1) and all(part >= -1e-9 for part in parts)


@pytest.mark.parametrize(("costs", "interval", "mtbf"), CASES)
def test_no_interval_is_better_than_daly_s(costs: Costs, interval: float, mtbf: float) -> None:
    best = expected_goodput(costs, optimal_interval(costs.stall_seconds, mtbf), mtbf).training
    others = np.geomspace(0.05, 20, 200) * optimal_interval(costs.stall_seconds, mtbf)
    assert best >= max(expected_goodput(costs, float(other), mtbf).training for other in others) - 0.0005

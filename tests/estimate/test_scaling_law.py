"""The law of loss: constants come back from made runs and from a paper's, and the intervals hold what they promise."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from bigtrain.base import BigtrainError
from bigtrain.estimate import Interval, ScalingLaw, TrainedPoint, bootstrap_laws, fit_law, interval
from tests.refusals import assert_refused

POINTS = Path(__file__).parent / "data" / "chinchilla_points.csv"
LAW = ScalingLaw(1.7, 400.0, 0.34, 1500.0, 0.36)
CONSTANTS = {
    "E": lambda law: law.irreducible_loss,
    "A": lambda law: law.model_factor,
    "alpha": lambda law: law.model_exponent,
    "B": lambda law: law.data_factor,
    "beta": lambda law: law.data_exponent,
}


def made(law, *, noise=0.0, seed=0, sizes=5, ratios=(5, 10, 20, 40)):
    """Runs of a ladder that follows a law, with normal noise in their log losses."""
    chance = np.random.default_rng(seed)
    return [
        TrainedPoint(size, size * ratio, law.loss(size, size * ratio) * math.exp(chance.normal(0, noise)))
        for size in np.geomspace(1e6, 3e7, sizes)
        for ratio in ratios
    ]


def published():
    """The runs of Hoffmann et al. that Besiroglu et al. fitted: those but the five of the highest loss."""
    lines = [line for line in POINTS.read_text().splitlines() if not line.startswith("#")]
    points = []
    for row in csv.DictReader(lines):
        size, flops = float(row["million_parameters"]) * 1e6, float(row["flops_1e18"]) * 1e18
        points.append(TrainedPoint(size, flops / 6 / size, float(row["loss"])))
    return sorted(points, key=lambda point: point.loss)[:-5]


@pytest.fixture(scope="module")
def fitted():
    return fit_law(published())


def huber_sum(law, points):
    """What the fit minimises, written again."""
    errors = [abs(math.log(p.loss) - math.log(law.loss(p.parameters, p.tokens))) for p in points]
    return sum(0.5 * e**2 if e <= 1e-3 else 1e-3 * (e - 5e-4) for e in errors)


def test_the_published_constants_come_back(fitted):
    """Besiroglu et al. (2024, table 2) give E 1.8172, A 482.01, B 2085.43, alpha 0.3478 and beta 0.3658 for these runs,
    with standard errors 0.03, 124.58, 1293.23, 0.02 and 0.02: ours are within a fifth of one of these."""
    theirs = {"E": (1.8172, 0.03), "A": (482.01, 124.58), "B": (2085.43, 1293.23)}
    theirs |= {"alpha": (0.3478, 0.02), "beta": (0.3658, 0.02)}
    for name, (value, error) in theirs.items():
        assert CONSTANTS[name](fitted) == pytest.approx(value, abs=error / 5), name
    assert huber_sum(fitted, published()) <= huber_sum(ScalingLaw(1.8172, 482.01, 0.3478, 2085.43, 0.3658), published())


def test_the_bootstrap_holds_the_published_constants(fitted):
    """The 90% intervals hold what was published, and are no wider than four of the published standard errors."""
    laws = bootstrap_laws(published(), fitted, replicates=200)
    for name, value, error in (("E", 1.8172, 0.03), ("alpha", 0.3478, 0.02), ("beta", 0.3658, 0.02)):
        found = interval(laws, CONSTANTS[name])
        assert found.low < value < found.high, name
        assert found.high - found.low < 4 * error, name


def test_scipy_finds_no_better_minimum(fitted):
    """Nelder-Mead, which needs no derivatives, ends at the same sum of Huber losses from the published constants."""
    points = published()

    def of(unknowns):
        floor, small, alpha, large, beta = unknowns
        return huber_sum(ScalingLaw(math.exp(floor), math.exp(small), alpha, math.exp(large), beta), points)

    start = (math.log(1.8172), math.log(482.01), 0.3478, math.log(2085.43), 0.3658)
    best = minimize(of, start, method="Nelder-Mead", options={"maxfev": 3000, "xatol": 1e-7, "fatol": 1e-10})
    assert huber_sum(fitted, points) <= best.fun * (1 + 1e-6)


@settings(max_examples=20)
@given(
    floor=st.floats(0.5, 2.5),
    of_size=st.floats(0.2, 2.0),
    alpha=st.floats(0.15, 0.8),
    of_data=st.floats(0.2, 2.0),
    beta=st.floats(0.15, 0.8),
)
def test_runs_without_noise_give_their_law(floor, of_size, alpha, of_data, beta):
    """Whatever the constants are, runs that follow them give them back, and the loss of a run far beyond."""
    law = ScalingLaw(floor, of_size * 5e6**alpha, alpha, of_data * 1e8**beta, beta)
    found = fit_law(made(law))
    assert found.loss(1e9, 2e10) == pytest.approx(law.loss(1e9, 2e10), rel=1e-3)
    assert found.model_exponent == pytest.approx(alpha, rel=2e-2)
    assert found.data_exponent == pytest.approx(beta, rel=2e-2)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of ladders with 0.3% of noise, the 90% intervals hold the exponents and a far loss in three of four or more."""
    hits = dict.fromkeys(("alpha", "beta", "far loss"), 0)
    of = {"alpha": CONSTANTS["alpha"], "beta": CONSTANTS["beta"], "far loss": lambda law: law.loss(1.2e8, 2.4e9)}
    ladders = 24
    for seed in range(ladders):
        points = made(LAW, noise=3e-3, seed=seed)
        laws = bootstrap_laws(points, fit_law(points), replicates=100, seed=seed)
        for name, number in of.items():
            found = interval(laws, number)
            hits[name] += found.low <= number(LAW) <= found.high
    assert min(hits.values()) >= 0.75 * ladders, hits


def test_one_bad_run_moves_the_law_little():
    """Huber's loss: a run that diverged, 30% above the law, moves the prediction by less than 1%."""
    points = made(LAW, noise=1e-3)
    points[7] = TrainedPoint(points[7].parameters, points[7].tokens, points[7].loss * 1.3)
    assert fit_law(points).loss(1.2e8, 2.4e9) == pytest.approx(LAW.loss(1.2e8, 2.4e9), rel=1e-2)


@given(flops=st.floats(1e15, 1e25), shift=st.floats(-1.0, 1.0))
def test_no_other_allocation_has_less_loss(flops, shift):
    """Of all sizes that so many operations can train, the optimal one has the least loss."""
    assume(abs(shift) > 1e-3)
    best = LAW.optimal(flops)
    assert 6 * best.parameters * best.tokens == pytest.approx(flops)
    other = best.parameters * math.exp(shift)
    assert LAW.loss(best.parameters, best.tokens) < LAW.loss(other, flops / 6 / other)


def test_a_wider_share_gives_a_wider_interval():
    """An interval is made of quantiles: the whole range for a share of one."""
    laws = [ScalingLaw(each, 1.0, 1.0, 1.0, 1.0) for each in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert interval(laws, CONSTANTS["E"], share=1.0) == Interval(1.0, 5.0)
    assert interval(laws, CONSTANTS["E"], share=0.5) == Interval(2.0, 4.0)


@pytest.mark.parametrize("sizes, ratios", [(2, (5, 10, 20, 40)), (3, (20,)), (5, (20,))])
def test_too_few_runs_are_refused(sizes, ratios):
    """Five constants need six runs, three sizes and three amounts of data."""
    with pytest.raises(BigtrainError) as refused:
        fit_law(made(LAW, sizes=sizes, ratios=ratios))
    assert_refused(refused, "a law of loss cannot be fitted", found="sizes", wanted="3 sizes", fix="--budget")

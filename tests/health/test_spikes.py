"""Promises of the guard against spikes: no false alarm on normal training, and no spike that is missed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.config.batch_schedule import BatchSchedule
from bigtrain.config.guard_settings import GuardSettings
from bigtrain.data import Plan
from bigtrain.data.order.mixture import MixturePhase
from bigtrain.data.order.plan import PlannedSource
from bigtrain.health.spikes import Assessment, Guard, deviations, turns_of

DEFAULTS = GuardSettings()
SMALL = GuardSettings(window=16, confirm_steps=3)

CHANCE = st.integers(0, 2**32 - 1).map(random.Random)

Curve = list[tuple[float, float]]


def assessments(guard: Guard, curve: Iterable[tuple[float, float]], first_step: int = 1) -> list[Assessment]:
    return [guard.assess(step, loss, norm) for step, (loss, norm) in enumerate(curve, start=first_step)]


def kinds(guard: Guard, curve: Iterable[tuple[float, float]], first_step: int = 1) -> list[str]:
    return [assessment.kind for assessment in assessments(guard, curve, first_step)]


def noisy(
    chance: random.Random, steps: int, level: Callable[[int], float], loss_noise: float, norm_noise: float
) -> Curve:
    """Gaussian losses around a level, log-normal gradient norms."""
    return [
        (level(step) + chance.gauss(0, loss_noise), math.exp(chance.gauss(-1, norm_noise))) for step in range(steps)
    ]


@given(
    loss=st.floats(0.01, 20),
    norm=st.floats(1e-6, 100),
    wobble=st.floats(0, 0.01),
    chance=CHANCE,
)
def test_a_flat_curve_gives_no_alarm(loss: float, norm: float, wobble: float, chance: random.Random) -> None:
    curve = [(loss + chance.uniform(-wobble, wobble), norm * (1 + chance.uniform(-wobble, wobble))) for _ in range(300)]
    assert set(kinds(Guard(DEFAULTS), curve)) == {"fine"}


@settings(max_examples=25)
@given(
    noise=st.floats(0.0, 1.0),
    norm_noise=st.floats(0.0, 1.0),
    start=st.floats(2, 12),
    slope=st.floats(-0.01, 0.01),
    chance=CHANCE,
)
def test_noise_and_drift_in_either_direction_give_no_alarm(
    noise: float, norm_noise: float, start: float, slope: float, chance: random.Random
) -> None:
    curve = noisy(chance, 600, lambda step: start + slope * step, noise, norm_noise)
    assert not any(assessment.is_anomaly for assessment in assessments(Guard(DEFAULTS), curve))


@given(chance=CHANCE)
def test_the_fall_at_the_beginning_of_a_training_gives_no_alarm(chance: random.Random) -> None:
    curve = noisy(chance, 1000, lambda step: 3 + 8 * math.exp(-step / 100), 0.05, 0.3)
    assert set(kinds(Guard(DEFAULTS), curve)) == {"fine"}


@given(at=st.integers(200, 400), length=st.integers(1, 4), chance=CHANCE)
def test_an_outlier_that_passes_by_itself_is_reported_and_no_anomaly(
    at: int, length: int, chance: random.Random
) -> None:
    curve = noisy(chance, 500, lambda step: 3.0, 0.02, 0.2)
    curve[at : at + length] = [(8.0, 50.0)] * length
    found = assessments(Guard(DEFAULTS), curve)
    assert not any(assessment.is_anomaly for assessment in found)
    (passed,) = [assessment for assessment in found if assessment.kind == "passed"]
    assert [outlier.step for outlier in passed.outliers] == list(range(at + 1, at + 1 + length))
    assert [assessment.kind for assessment in found].count("suspicious") == length


@settings(max_examples=25)
@given(
    at=st.integers(150, 400),
    noise=st.floats(0.001, 0.3),
    size=st.floats(12, 1000),
    in_loss=st.booleans(),
    chance=CHANCE,
)
def test_a_spike_that_stays_is_found_after_confirm_steps(
    at: int, noise: float, size: float, in_loss: bool, chance: random.Random
) -> None:
    """It is found after `confirm_steps` outliers in a row, and named by the first of them."""
    curve = noisy(chance, 500, lambda step: 3.0, noise, 0.05)
    jump = 1.5 * size * max(noise, 0.02)  # a sample's MAD may be half as large again as that of the distribution
    for step in range(at, 500):
        loss, norm = curve[step]
        curve[step] = (loss + jump + 4 * noise, norm) if in_loss else (loss, norm * math.exp(1.5 * 0.2 * size**0.5 * 4))
    found = assessments(Guard(DEFAULTS), curve)
    first = next(assessment for assessment in found if assessment.is_anomaly)
    assert first.kind == "spike" and (first.first_step, first.last_step) == (at + 1, at + DEFAULTS.confirm_steps)
    z = first.worst.loss_z if in_loss else first.worst.grad_norm_z
    assert z is not None and z > 10
    assert f"steps {at + 1} to {at + 5}" in str(first)


@pytest.mark.parametrize(
    "bad", [(math.nan, 1.0), (math.inf, 1.0), (3.0, math.inf), (3.0, math.nan), (math.nan, math.nan)]
)
def test_what_is_not_finite_is_an_anomaly_at_once_even_in_step_1(bad: tuple[float, float]) -> None:
    (assessment,) = assessments(Guard(DEFAULTS, warmup_steps=100), [bad])
    assert assessment.kind == "not finite" and assessment.is_anomaly
    assert assessment.first_step == assessment.last_step == 1
    assert "not finite at step 1" in str(assessment)


def test_an_anomaly_that_ends_in_nan_starts_with_the_outliers_before() -> None:
    guard = Guard(SMALL)
    found = assessments(guard, [(3.0, 1.0)] * 20 + [(9.0, 1.0), (20.0, 1.0), (math.nan, 1.0)])[-1]
    assert found.kind == "not finite" and (found.first_step, found.last_step) == (21, 23)


def test_nothing_is_a_spike_in_the_warm_up_nor_before_there_is_a_window() -> None:
    spiky = [(3.0, 1.0)] * 11 + [(30.0, 100.0)] * 5
    assert set(kinds(Guard(SMALL), spiky)) == {"fine"}
    assert set(kinds(Guard(SMALL, warmup_steps=100), [(3.0, 1.0)] * 40 + [(30.0, 1.0)] * 5)) == {"fine"}
    assert "spike" in kinds(Guard(SMALL, warmup_steps=40), [(3.0, 1.0)] * 40 + [(30.0, 1.0)] * 5)


def test_a_new_phase_is_no_spike_and_later_steps_compare_with_it() -> None:
    curve = [(3.0, 1.0)] * 50 + [(6.0, 1.0)] * 50
    assert "spike" in kinds(Guard(SMALL), curve)
    assert set(kinds(Guard(SMALL, fresh_at=[51]), curve)) == {"fine"}
    assert kinds(Guard(SMALL, fresh_at=[51]), [*curve, *[(9.0, 1.0)] * 3])[-1] == "spike"


def test_a_new_level_that_is_only_noted_becomes_the_level() -> None:
    guard = Guard(SMALL)
    assessments(guard, [(3.0, 1.0)] * 20 + [(6.0, 1.0)] * 3)
    guard.forget()
    assert not guard.suspects and set(kinds(guard, [(6.0, 1.0)] * 50, first_step=24)) == {"fine"}


def test_without_a_limit_nothing_is_an_outlier() -> None:
    curve = [(3.0, 1.0)] * 20 + [(30.0, 1000.0)] * 5
    assert set(kinds(Guard(GuardSettings(window=16, loss_z=None, grad_norm_z=None)), curve)) == {"fine"}
    assert "suspicious" in kinds(Guard(GuardSettings(window=16, loss_z=None)), curve)


@given(
    cut=st.integers(1, 99),
    chance=CHANCE,
    at=st.integers(20, 90),
    length=st.integers(1, 9),
)
def test_a_run_that_resumes_anywhere_comes_to_the_same_verdicts(
    cut: int, chance: random.Random, at: int, length: int
) -> None:
    curve = noisy(chance, 100, lambda step: 3.0, 0.02, 0.2)
    curve[at : at + length] = [(5.0, 9.0)] * len(curve[at : at + length])
    whole, first, second = (Guard(SMALL, warmup_steps=5, fresh_at=[70]) for _ in range(3))
    before = assessments(first, curve[:cut])
    second.restore(json.loads(json.dumps(first.state())))
    assert second.suspects == first.suspects
    assert before + assessments(second, curve[cut:], first_step=cut + 1) == assessments(whole, curve)
    assert second.state() == whole.state()


def test_the_median_does_not_follow_a_few_wild_values() -> None:
    history = [3.0 + 0.01 * (i % 5) for i in range(100)] + [50.0] * 20
    assert deviations(3.5, history, 0.001) > 10
    assert deviations(3.0, history, 0.001) < 0


def test_steps_compare_afresh_where_the_plan_changes() -> None:
    sources = [PlannedSource("a", "0" * 32, 1000, 1000), PlannedSource("b", "1" * 32, 1000, 1000)]
    batches = BatchSchedule([(10, 4)], 8)
    plan = Plan(
        sources,
        [MixturePhase(0, (1, 1)), MixturePhase(200, (1, 3))],
        seed=0,
        sequence_length=8,
        batches=batches,
        skipped=[(40, 80)],
    )
    # 10 steps of 4 samples; draw 200 is sample 160, which is (160 - 40) / 8 = 15 steps after them.
    assert turns_of(plan) == {11, 26}

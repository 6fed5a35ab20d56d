"""Two plans of samples: where they differ, and whether a run may change from one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigtrain.config import Settings, load_settings
from bigtrain.data import Plan, RunData, find_unlabelled
from bigtrain.rundir.decisions import read_decisions, with_decisions
from bigtrain.rundir.directory import RunDirectory


@dataclass(frozen=True)
class FirstDifference:
    """Before it all batches of two plans are the same."""

    sample: int
    """Its number in the schedule, from 0."""
    step: int
    tokens: int
    """Of the samples before it."""


@dataclass(frozen=True)
class SamplesOfSource:
    """What a source gives in two schedules."""

    source: str
    samples: tuple[int, int]


@dataclass(frozen=True)
class PlanDifference:
    """The plans of two runs or configurations."""

    plans: tuple[str, str]
    """Their ids."""
    differs: list[str]
    """The parts of the plan that are not equal."""
    same_before: FirstDifference | None
    """Null where every batch is the same."""
    sources: list[SamplesOfSource]
    consumed: tuple[int | None, int | None]
    """The samples that each has done; null for a configuration."""


def compare_plans(one: Path, other: Path, overrides: Sequence[str] = ()) -> PlanDifference:
    """Compare the plans of two runs or configurations, without looking at a sample.

    Args:
        one: a run directory or a configuration.
        other: another, or the same one under other settings.
        overrides: `key=value`, as for training, applied to `other`.

    Raises:
        BigtrainError: no run or configuration, its data have not been built, or data.skip names no document of them.
    """
    opened = [(settings, RunData.open(settings)) for settings in (_settings(one), _settings(other, overrides))]
    for _, data in opened:
        find_unlabelled(data.plan, data.train)  # training would refuse it, so a run may not change over to it
    counts = [_samples_of_sources(settings, data.plan) for settings, data in opened]
    first, second = (data.plan for _, data in opened)
    sample = first.first_difference(second)
    return PlanDifference(
        plans=(first.plan_id, second.plan_id),
        differs=first.parts_unlike(second),
        same_before=None
        if sample is None
        else FirstDifference(sample=sample, step=first.batches.step_of(sample), tokens=first.tokens_before(sample)),
        sources=[
            SamplesOfSource(name, (counts[0].get(name, 0), counts[1].get(name, 0)))
            for name in dict.fromkeys([*counts[0], *counts[1]])
        ],
        consumed=(_consumed(one), _consumed(other)),
    )


def _settings(place: Path, overrides: Sequence[str] = ()) -> Settings:
    """Settings with the decisions of the run: a start under a configuration without them gets them too."""
    settings = load_settings(RunDirectory.of_existing_run(place).config if place.is_dir() else place, overrides)
    if place.is_dir():
        RunDirectory(place).refuse_to_fetch_elsewhere(settings.data)
    return with_decisions(
        settings, read_decisions(RunDirectory(place if place.is_dir() else settings.run_dir).decisions)
    )


def _samples_of_sources(settings: Settings, plan: Plan) -> dict[str, int]:
    """The samples of each source, at all lengths together."""
    samples = plan.batches.consumed_after(settings.total_steps)
    counts: dict[str, int] = {}
    for source, count in zip(plan.sources, plan.samples_drawn(samples), strict=True):
        counts[source.name] = counts.get(source.name, 0) + count
    return counts


def _consumed(place: Path) -> int | None:
    if not place.is_dir():
        return None
    newest = RunDirectory(place).newest()
    return newest.get("consumed_samples", 0) if newest else 0

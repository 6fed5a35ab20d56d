"""Two plans side by side: what a change of the settings moves, and whether a run may take it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigtrain.config import Settings, load_settings
from bigtrain.data import Plan
from bigtrain.data.batch.unlabelled import find_unlabelled
from bigtrain.data.run_data import RunData
from bigtrain.rundir.decisions import read_decisions, with_decisions
from bigtrain.rundir.directory import RunDirectory


def compare_plans(one: Path, other: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compare the plans of two runs or configurations, without looking at a sample.

    Args:
        one: a run directory or a configuration.
        other: another, or the same one under other settings.
        overrides: `key=value`, as for training, applied to `other`.

    Returns:
        plans (the two ids), differs (the parts that are not equal), same_before: the sample, step and tokens before
        which every batch is the same (None: for ever), sources: how many samples each gives in either schedule, and
        consumed: for each of the two that is a run, how many samples it has done.

    Raises:
        BigtrainError: no run or configuration, its data have not been built, or data.skip names no document of them.
    """
    opened = [(settings, RunData.open(settings)) for settings in (_settings(one), _settings(other, overrides))]
    for _, data in opened:
        find_unlabelled(data.plan, data.train)  # a diff says what a run may change over to: training would refuse it
    counts = [_samples_of_sources(settings, data.plan) for settings, data in opened]
    first, second = (data.plan for _, data in opened)
    sample = first.first_difference(second)
    return {
        "plans": [first.plan_id, second.plan_id],
        "differs": first.parts_unlike(second),
        "same_before": None
        if sample is None
        else {
            "sample": sample,
            "step": first.batches.step_of(sample),
            "tokens": sample * first.sequence_length,
        },
        "sources": [
            {"source": name, "samples": [count.get(name, 0) for count in counts]}
            for name in dict.fromkeys([*counts[0], *counts[1]])
        ],
        "consumed": [_consumed(place) for place in (one, other)],
    }


def _settings(place: Path, overrides: Sequence[str] = ()) -> Settings:
    """With what the run has decided: a start under a configuration that does not know of it has it all the same."""
    settings = load_settings(RunDirectory.of_existing_run(place).config if place.is_dir() else place, overrides)
    return with_decisions(
        settings, read_decisions(RunDirectory(place if place.is_dir() else settings.run_dir).decisions)
    )


def _samples_of_sources(settings: Settings, plan: Plan) -> dict[str, int]:
    samples = plan.batches.consumed_after(settings.total_steps)
    return {source.name: n for source, n in zip(plan.sources, plan.samples_drawn(samples), strict=True)}


def _consumed(place: Path) -> int | None:
    if not place.is_dir():
        return None
    newest = RunDirectory(place).newest()
    return newest["consumed_samples"] if newest else 0

"""Promises of the plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config.batch_schedule import BatchSchedule
from bigtrain.config.data_settings import DataSettings
from bigtrain.config.settings import TrainSettings
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data.batch.packing import open_packings
from bigtrain.data.batch.planning import make_plan, require_samples
from bigtrain.data.order.mixture import MixturePhase
from bigtrain.data.order.plan import DocumentSkip, Plan, PlannedSource
from bigtrain.data.store.store import Dataset
from tests.data.helpers import data_settings, random_dataset, write_dataset


def plan_of(sources: list[PlannedSource], phases: list[MixturePhase], **changes: Any) -> Plan:
    return Plan(sources, phases, **{"seed": 1, "sequence_length": 8, "batches": BatchSchedule([], 4), **changes})


def sources_of(counts: list[int], bounds: list[int | None] | None = None) -> list[PlannedSource]:
    return [
        PlannedSource(f"s{i}", f"id{i}", n * 8, n, at_most=bound)
        for i, (n, bound) in enumerate(zip(counts, bounds or [None] * len(counts), strict=True))
    ]


def addresses(plan: Plan, start: int, end: int) -> list[tuple[int, int, int]]:
    located = plan.locate_many(np.arange(start, end))
    return list(zip(*(field.tolist() for field in located), strict=True))


def end_of(plan: Plan, samples: int) -> int:
    return samples if plan.samples is None else min(samples, plan.samples)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans with phases, bounds, sources that join later, blocks that are shuffled, skips and a warm-up."""
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    weights = st.tuples(*[st.integers(0, 20)] * len(counts)).filter(any)
    later = draw(st.lists(st.tuples(st.integers(1, 300), weights), max_size=3, unique_by=lambda phase: phase[0]))
    phases = [MixturePhase(0, draw(weights)), *(MixturePhase(*phase) for phase in sorted(later))]
    bounds = [draw(st.none() | st.integers(1, 3 * n)) for n in counts]
    blocks = [draw(st.none() | st.tuples(st.integers(1, 9), st.integers(1, 4))) for _ in counts]
    sources = [
        source if shape is None else replace(source, block=shape[0], window=shape[1])
        for source, shape in zip(sources_of(counts, bounds), blocks, strict=True)
    ]
    skipped = draw(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 30)), max_size=3))
    return plan_of(
        sources,
        phases,
        seed=draw(st.integers(0, 2**63)),
        skipped=[(start, start + length) for start, length in skipped],
        batches=BatchSchedule(draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=3)), 8),
    )


def test_skips_move_the_later_samples_forward() -> None:
    """Without skips, samples are draws; with them, later samples move forward."""
    plain = plan_of(sources_of([20, 30]), [MixturePhase(0, (1, 2))])
    skipping = plan_of(sources_of([20, 30]), [MixturePhase(0, (1, 2))], skipped=[(8, 12), (30, 31)])
    wanted = [address for draw, address in enumerate(addresses(plain, 0, 60)) if draw not in (8, 9, 10, 11, 30)]
    assert addresses(skipping, 0, 55) == wanted


@given(plans(), st.integers(0, 400))
def test_every_sequence_comes_once_an_epoch_before_any_comes_again(plan: Plan, samples: int) -> None:
    """Over all draws: what is skipped counts as having come."""
    whole = plan_of(list(plan.sources), list(plan.phases), seed=plan.seed)
    samples = end_of(whole, samples)
    seen = addresses(whole, 0, samples)
    assert len(set(seen)) == len(seen)
    for index, source in enumerate(whole.sources):
        own = [(epoch, sequence) for number, epoch, sequence in seen if number == index]
        assert len(own) == whole.samples_drawn(samples)[index]
        assert [epoch for epoch, _ in own] == [k // source.sequences for k in range(len(own))]
        for epoch in range(len(own) // source.sequences):
            assert sorted(s for e, s in own if e == epoch) == list(range(source.sequences))


@given(plans(), st.integers(0, 400))
def test_skipping_leaves_out_its_draws_and_nothing_else(plan: Plan, samples: int) -> None:
    samples = end_of(plan, samples)
    whole = plan_of(list(plan.sources), list(plan.phases), seed=plan.seed)
    left_out = {draw for start, end in plan.skips.ranges for draw in range(start, end)}
    draws = [draw for draw in range(samples + len(left_out)) if draw not in left_out][:samples]
    assert addresses(plan, 0, samples) == [tuple(whole.locate(draw)) for draw in draws]
    counts = [
        sum(source == index for source, _, _ in addresses(plan, 0, samples)) for index in range(len(plan.sources))
    ]
    assert plan.samples_drawn(samples) == counts


@given(plans())
def test_a_bounded_source_gives_that_much_and_no_more(plan: Plan) -> None:
    whole = plan_of(list(plan.sources), list(plan.phases), seed=plan.seed)
    samples = end_of(whole, 2000)
    drawn = whole.samples_drawn(samples)
    for source, given_by_it in zip(whole.sources, drawn, strict=True):
        assert source.at_most is None or given_by_it <= source.at_most
    if whole.samples is not None:  # it ends because all that the last phase draws from is used up
        weights = [p for p in whole.phases if p.start <= whole.samples][-1].weights
        if not any(phase.start == whole.samples for phase in whole.phases):
            assert all(
                drawn[i] == s.at_most for i, s in enumerate(whole.sources) if weights[i] and whole.samples < 2000
            )


@given(plans(), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_one_sample_and_many_samples_agree_in_any_order(plan: Plan, samples: list[int]) -> None:
    samples = [sample for sample in samples if plan.samples is None or sample < plan.samples] or [0]
    if plan.samples == 0:
        return
    many = plan.locate_many(np.array(samples))
    assert [plan.locate(sample) for sample in samples] == [
        tuple(values) for values in zip(*(field.tolist() for field in many), strict=True)
    ]


@given(plans(), st.integers(0, 400), st.data())
def test_a_phase_appended_from_a_sample_on_moves_no_earlier_sample(plan: Plan, start: int, data: st.DataObject) -> None:
    start += plan.phases[-1].start + 1
    weights = data.draw(st.tuples(*[st.integers(1, 20)] * len(plan.sources)))
    longer = edited(plan, phases=[*plan.phases, MixturePhase(start, weights)])
    sample = end_of(plan, plan.skips.sample_of(start))
    assert addresses(longer, 0, sample) == addresses(plan, 0, sample)
    assert longer.plan_id != plan.plan_id


def edited(plan: Plan, **changes: Any) -> Plan:
    values = {
        "sources": plan.sources,
        "phases": plan.phases,
        "seed": plan.seed,
        "sequence_length": plan.sequence_length,
        "batches": plan.batches,
        "skipped": plan.skips.ranges,
        "unlabelled": plan.unlabelled,
    }
    return Plan(**{**values, **changes})


@st.composite
def edits(draw: st.DrawFn) -> tuple[Plan, Plan]:
    """A plan, and one that somebody made of it."""
    plan = draw(plans())
    changes: dict[str, Any] = {}
    kinds = draw(st.sets(st.sampled_from(["phase", "skip", "source", "bound", "batch", "replace"]), min_size=1))
    if "phase" in kinds:
        start = plan.phases[-1].start + draw(st.integers(1, 100))
        weights = draw(st.tuples(*[st.integers(0, 5)] * len(plan.sources)).filter(any))
        changes["phases"] = [*plan.phases, MixturePhase(start, weights)]
    if "skip" in kinds:
        start = draw(st.integers(0, 300))
        changes["skipped"] = [*plan.skips.ranges, (start, start + draw(st.integers(1, 20)))]
    if "source" in kinds:
        phases = changes.get("phases", plan.phases)
        changes["sources"] = [*plan.sources, PlannedSource("new", "idnew", 80, 10)]
        changes["phases"] = [MixturePhase(p.start, (*p.weights, int(i > 0))) for i, p in enumerate(phases)]
    sources = list(changes.get("sources", plan.sources))
    index = draw(st.integers(0, len(plan.sources) - 1))
    if "bound" in kinds:
        sources[index] = replace(sources[index], at_most=draw(st.none() | st.integers(1, 100)))
    if "replace" in kinds:
        sources[index] = replace(sources[index], dataset_id="rebuilt", sequences=draw(st.integers(1, 40)))
    if "batch" in kinds:
        stages = [
            (after.first_step - before.first_step, before.global_batch_size)
            for before, after in zip(plan.batches.stages, plan.batches.stages[1:], strict=False)
        ]
        changes["batches"] = BatchSchedule([*stages, (draw(st.integers(1, 20)), 8)], draw(st.integers(1, 12)))
    return plan, edited(plan, **{**changes, "sources": sources})


@given(edits())
def test_two_plans_are_the_same_before_their_first_difference(pair: tuple[Plan, Plan]) -> None:
    plan, other = pair
    difference = plan.first_difference(other)
    assert difference == other.first_difference(plan)
    same = 400 if difference is None else difference
    same = min(same, end_of(plan, 400), end_of(other, 400))
    assert addresses(plan, 0, same) == addresses(other, 0, same)
    assert [plan.batches.step_of(g) for g in range(same)] == [other.batches.step_of(g) for g in range(same)]
    if end_of(plan, 400) != end_of(other, 400):
        assert difference is not None
        assert difference <= same


def test_the_first_difference_is_where_an_edit_begins() -> None:
    plan = plan_of(sources_of([20, 30]), [MixturePhase(0, (1, 2)), MixturePhase(90, (1, 1))])
    joined = edited(
        plan,
        sources=sources_of([20, 30, 10]),
        phases=[MixturePhase(0, (1, 2, 0)), MixturePhase(90, (1, 1, 0)), MixturePhase(200, (1, 1, 1))],
    )
    assert plan.first_difference(joined) == 200
    assert plan.first_difference(edited(plan, skipped=[(40, 44)])) == 40
    assert plan.first_difference(edited(plan, phases=[MixturePhase(0, (1, 2)), MixturePhase(95, (1, 1))])) == 90
    assert plan.first_difference(edited(plan, batches=BatchSchedule([(10, 4)], 8))) == 40
    assert plan.first_difference(edited(plan, unlabelled=[DocumentSkip("s0", 64, "a*")])) == 64
    assert plan.first_difference(edited(plan, sources=sources_of([20, 30], [7, None]))) == 3 * 7 - 1
    assert plan.first_difference(edited(plan, seed=2)) == 0
    assert plan.first_difference(edited(plan)) is None


@given(plans())
def test_a_plan_can_be_made_again_from_its_description(plan: Plan) -> None:
    described = json.loads(json.dumps(plan.describe()))
    again = Plan.from_json(described)
    assert described["plan_id"] == plan.plan_id == again.plan_id
    assert plan.first_difference(again) is None
    samples = end_of(plan, 50)
    assert addresses(again, 0, samples) == addresses(plan, 0, samples)


def planned(folder: Path, datasets: list[Dataset], settings: DataSettings, **train: Any) -> Plan:
    values = {"steps": 100, "global_batch_size": 10, **train}
    return make_plan(settings, TrainSettings.model_validate(values), open_packings(settings, datasets))


def two_sources(folder: Path, **changes: Any) -> tuple[list[Dataset], dict[str, Any]]:
    """Datasets a and b, and how to make settings for them: `sources` with these keys of a."""
    datasets = [random_dataset(folder / name, size, source=name) for name, size in (("a", 3000), ("b", 700))]
    return datasets, {
        "a": {"name": "a", "kind": "python_stdlib", **changes},
        "b": {"name": "b", "kind": "python_stdlib"},
    }


def test_without_weights_the_first_samples_are_one_epoch_of_everything(tmp_path: Path) -> None:
    datasets, sources = two_sources(tmp_path)
    plan = planned(tmp_path, datasets, data_settings(tmp_path, *map(SourceSettings.model_validate, sources.values())))
    total = sum(source.sequences for source in plan.sources)
    assert {epoch for _, epoch, _ in addresses(plan, 0, total)} == {0}
    assert len(set(addresses(plan, 0, total))) == total
    assert [source.sequences for source in plan.sources] == [-(-d.tokens // 32) for d in datasets]


def test_typed_weights_are_the_shares_of_the_mixture(tmp_path: Path) -> None:
    """Typed weights are the shares of the mixture, and they change where a phase starts."""
    datasets, sources = two_sources(tmp_path, weight=0.1)
    sources["b"]["weight"] = 0.9
    settings = data_settings(
        tmp_path,
        *map(SourceSettings.model_validate, sources.values()),
        phases=[{"from_tokens": 32 * 10_000 - 5, "weights": {"a": 1}}],
    )
    plan = planned(tmp_path, datasets, settings)
    assert plan.phases == (MixturePhase(0, (1, 9)), MixturePhase(10_000, (1, 0)))
    assert plan.samples_drawn(10_000) == [1000, 9000]
    assert plan.samples_drawn(12_000) == [3000, 9000]


def test_a_source_of_weight_0_waits_for_its_phase_and_moves_nothing_before(tmp_path: Path) -> None:
    datasets, sources = two_sources(tmp_path)
    settings = data_settings(tmp_path, SourceSettings.model_validate(sources["a"]))
    before = planned(tmp_path, datasets[:1], settings)
    sources["b"]["weight"] = 0.0
    settings = data_settings(
        tmp_path,
        *map(SourceSettings.model_validate, sources.values()),
        phases=[{"from_tokens": 3200, "weights": {"a": 1, "b": 2}}],
    )
    after = planned(tmp_path, datasets, settings)
    assert before.first_difference(after) == 100
    assert addresses(before, 0, 100) == addresses(after, 0, 100)
    assert after.samples_drawn(400) == [200, 200]


def test_a_source_with_max_epochs_is_used_up(tmp_path: Path) -> None:
    """A source with max_epochs is used up, and a run that needs more samples than there are is refused."""
    datasets, sources = two_sources(tmp_path, max_epochs=1.5)
    sources["b"]["max_epochs"] = 2.0
    plan = planned(tmp_path, datasets, data_settings(tmp_path, *map(SourceSettings.model_validate, sources.values())))
    counts = [source.sequences for source in plan.sources]
    assert plan.samples == counts[0] * 3 // 2 + 2 * counts[1]
    require_samples(plan, plan.samples)
    with pytest.raises(BigtrainError, match=r"used up.*every source that is still drawn from") as error:
        require_samples(plan, plan.samples + 1)
    assert f"{plan.samples:,} samples" in str(error.value)


def test_skipped_steps_are_those_the_run_has_under_the_entries_before(tmp_path: Path) -> None:
    datasets, sources = two_sources(tmp_path)
    skips = [{"steps": [3, 4], "reason": "spike"}, {"steps": [3, 3], "reason": "again"}]

    def plan_with(count: int, **train: Any) -> Plan:
        settings = data_settings(tmp_path, *map(SourceSettings.model_validate, sources.values()), skip=skips[:count])
        return planned(tmp_path, datasets, settings, **train)

    plain, once, twice = (addresses(plan_with(count), 0, 60) for count in range(3))
    assert once == plain[:20] + plain[40:60] + addresses(plan_with(0), 60, 80)
    assert twice[:30] == plain[:20] + plain[50:60]
    warm = {"batch_size_warmup": [{"steps": 2, "global_batch_size": 5}]}
    assert addresses(plan_with(1, **warm), 0, 30) == plain[:10] + plain[30:50]


def test_an_empty_training_split_is_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [], source="nothing")
    with pytest.raises(BigtrainError, match="'nothing' is empty"):
        planned(tmp_path, [dataset], data_settings(tmp_path, SourceSettings(name="n", kind="python_stdlib")))


def test_a_plan_over_ten_trillion_samples_is_as_cheap_as_a_small_one() -> None:
    plan = plan_of(sources_of([10**13, 10**13 + 1]), [MixturePhase(0, (1, 1))])
    located = plan.locate_many(np.array([0, 10**12, 2 * 10**13 - 1, 5 * 10**13]))
    assert located.epoch.tolist() == [0, 0, 0, 2]
    assert all(0 <= s <= 10**13 for s in located.sequence.tolist())


@given(plans(), st.integers(0, 400))
def test_samples_of_every_sequence_together_are_all_samples_in_place(plan: Plan, before: int) -> None:
    before = end_of(plan, before)
    forward = addresses(plan, 0, before)
    backward: dict[int, tuple[int, int, int]] = {}
    for index, source in enumerate(plan.sources):
        found = plan.samples_of(index, np.arange(source.sequences), before=before)
        assert found.sample.tolist() == sorted(found.sample.tolist())
        for sample, epoch, sequence in zip(*(field.tolist() for field in found), strict=True):
            assert sample not in backward
            backward[sample] = (index, epoch, sequence)
    assert [backward[sample] for sample in range(before)] == forward
    assert len(backward) == before


@given(plans(), st.integers(0, 600), st.data())
def test_a_sequence_is_found_wherever_it_was_sampled(plan: Plan, before: int, data: st.DataObject) -> None:
    before = end_of(plan, before)
    source = data.draw(st.integers(0, len(plan.sources) - 1))
    sequence = data.draw(st.integers(0, plan.sources[source].sequences - 1))
    found = plan.samples_of(source, np.array([sequence]), before=before)
    everywhere = [
        (g, epoch) for g, (s, epoch, q) in enumerate(addresses(plan, 0, before)) if (s, q) == (source, sequence)
    ]
    assert list(zip(found.sample.tolist(), found.epoch.tolist(), strict=True)) == everywhere


def test_samples_are_found_among_ten_trillion() -> None:
    plan = plan_of(sources_of([10**13, 10**13 + 1]), [MixturePhase(0, (1, 1)), MixturePhase(10**12 + 7, (3, 5))])
    for sample in (0, 10**12, 10**12 + 7, 2 * 10**13, 5 * 10**13):
        source, epoch, sequence = plan.locate(sample)
        found = plan.samples_of(source, np.array([sequence]), before=sample + 1)
        assert (found.sample[-1], found.epoch[-1]) == (sample, epoch)

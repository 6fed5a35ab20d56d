"""Promises of the plan."""

from __future__ import annotations

import json

import numpy as np
import pytest
from data_support import data_settings, random_dataset
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.config.data_settings import SourceSettings
from bigtrain.config.errors import BigtrainError
from bigtrain.data.plan import Phase, Plan, PlannedSource


def make_plan(counts: list[int], phases: list[Phase], seed: int = 1) -> Plan:
    sources = [PlannedSource(f"s{i}", f"id{i}", n * 8, n) for i, n in enumerate(counts)]
    return Plan(sources, phases, seed=seed, sequence_length=8)


def addresses(plan: Plan, start: int, end: int) -> list[tuple[int, int, int]]:
    located = plan.locate_many(np.arange(start, end))
    return list(zip(*(field.tolist() for field in located), strict=True))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    weights = st.tuples(*[st.integers(1, 20)] * len(counts))
    later = draw(st.lists(st.tuples(st.integers(1, 300), weights), max_size=3, unique_by=lambda phase: phase[0]))
    phases = [Phase(0, draw(weights)), *(Phase(*phase) for phase in sorted(later))]
    return make_plan(counts, phases, draw(st.integers(0, 2**63)))


@given(plans(), st.integers(0, 400))
def test_every_sequence_comes_once_an_epoch_before_any_comes_again(plan: Plan, samples: int) -> None:
    seen = addresses(plan, 0, samples)
    assert len(set(seen)) == len(seen)
    for index, source in enumerate(plan.sources):
        own = [(epoch, sequence) for number, epoch, sequence in seen if number == index]
        assert len(own) == plan.samples_drawn(samples)[index]
        assert [epoch for epoch, _ in own] == [k // source.sequences for k in range(len(own))]
        for epoch in range(len(own) // source.sequences):
            assert sorted(s for e, s in own if e == epoch) == list(range(source.sequences))


@given(plans(), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_one_sample_and_many_samples_agree_in_any_order(plan: Plan, samples: list[int]) -> None:
    many = plan.locate_many(np.array(samples))
    assert [plan.locate(sample) for sample in samples] == [
        tuple(values) for values in zip(*(field.tolist() for field in many), strict=True)
    ]


@given(plans(), st.integers(0, 400), st.data())
def test_a_phase_appended_from_a_sample_on_moves_no_earlier_sample(plan: Plan, start: int, data: st.DataObject) -> None:
    start += plan.phases[-1].start_sample + 1
    weights = data.draw(st.tuples(*[st.integers(1, 20)] * len(plan.sources)))
    longer = Plan(plan.sources, [*plan.phases, Phase(start, weights)], seed=plan.seed, sequence_length=8)
    assert addresses(longer, 0, start) == addresses(plan, 0, start)
    assert longer.plan_id != plan.plan_id


def test_without_weights_the_first_samples_are_one_epoch_of_everything(tmp_path) -> None:
    datasets = [random_dataset(tmp_path / name, size, source=name) for name, size in (("a", 3000), ("b", 700))]
    sources = [SourceSettings(name=name, kind="python_stdlib") for name in ("a", "b")]
    plan = Plan.from_datasets(datasets, data_settings(tmp_path, *sources), seed=0)
    total = sum(source.sequences for source in plan.sources)
    assert {epoch for _, epoch, _ in addresses(plan, 0, total)} == {0}
    assert len(set(addresses(plan, 0, total))) == total
    assert [source.sequences for source in plan.sources] == [-(-d.tokens // 32) for d in datasets]


def test_typed_weights_are_the_shares_of_the_mixture(tmp_path) -> None:
    datasets = [random_dataset(tmp_path / name, 1000, source=name) for name in ("a", "b")]
    sources = [SourceSettings(name=name, kind="python_stdlib", weight=w) for name, w in (("a", 0.1), ("b", 0.9))]
    plan = Plan.from_datasets(datasets, data_settings(tmp_path, *sources), seed=0)
    assert plan.phases[0].weights == (1, 9)
    assert plan.samples_drawn(10_000) == [1000, 9000]


def test_whatever_changes_the_order_changes_the_plan_id() -> None:
    source = PlannedSource("a", "id", 80, 10)
    phase = Phase(0, (1,))
    base = Plan([source], [phase], seed=0, sequence_length=8)
    assert Plan([source], [phase], seed=0, sequence_length=8).plan_id == base.plan_id
    others = [
        Plan([source], [phase], seed=1, sequence_length=8),
        Plan([source], [phase], seed=0, sequence_length=16),
        Plan([PlannedSource("b", "id", 80, 10)], [phase], seed=0, sequence_length=8),
        Plan([PlannedSource("a", "di", 80, 10)], [phase], seed=0, sequence_length=8),
        Plan([source, source], [Phase(0, (1, 1))], seed=0, sequence_length=8),
        Plan([source, source], [Phase(0, (1, 2))], seed=0, sequence_length=8),
        Plan([source], [phase, Phase(5, (1,))], seed=0, sequence_length=8),
    ]
    assert len({plan.plan_id for plan in [base, *others]}) == 8


def test_the_description_is_json_and_holds_the_plan_id() -> None:
    plan = make_plan([10, 20], [Phase(0, (1, 2))])
    assert json.loads(json.dumps(plan.describe()))["plan_id"] == plan.plan_id


def test_a_plan_over_ten_trillion_samples_is_as_cheap_as_a_small_one() -> None:
    plan = make_plan([10**13, 10**13 + 1], [Phase(0, (1, 1))])
    located = plan.locate_many(np.array([0, 10**12, 2 * 10**13 - 1, 5 * 10**13]))
    assert located.epoch.tolist() == [0, 0, 0, 2]
    assert all(0 <= s <= 10**13 for s in located.sequence.tolist())


def test_an_empty_training_split_is_refused(tmp_path) -> None:
    from data_support import write_dataset

    dataset = write_dataset(tmp_path, [], source="nothing")
    with pytest.raises(BigtrainError, match="'nothing' is empty"):
        Plan.from_datasets([dataset], data_settings(tmp_path, SourceSettings(name="n", kind="python_stdlib")), seed=0)


@given(plans(), st.integers(0, 400))
def test_samples_of_every_sequence_together_are_all_samples_in_place(plan: Plan, before: int) -> None:
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
    source = data.draw(st.integers(0, len(plan.sources) - 1))
    sequence = data.draw(st.integers(0, plan.sources[source].sequences - 1))
    found = plan.samples_of(source, np.array([sequence]), before=before)
    everywhere = [
        (g, epoch) for g, (s, epoch, q) in enumerate(addresses(plan, 0, before)) if (s, q) == (source, sequence)
    ]
    assert list(zip(found.sample.tolist(), found.epoch.tolist(), strict=True)) == everywhere


def test_samples_are_found_among_ten_trillion() -> None:
    plan = make_plan([10**13, 10**13 + 1], [Phase(0, (1, 1)), Phase(10**12 + 7, (3, 5))])
    for sample in (0, 10**12, 10**12 + 7, 2 * 10**13, 5 * 10**13):
        source, epoch, sequence = plan.locate(sample)
        found = plan.samples_of(source, np.array([sequence]), before=sample + 1)
        assert (found.sample[-1], found.epoch[-1]) == (sample, epoch)

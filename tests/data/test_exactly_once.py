"""Every sample is delivered exactly once, whatever the cluster looks like and however often it changes.

Real loaders over real shards: a run is started, stopped at any step and started again on another number of ranks, with
other micro-batches, under plans with phases, bounds, skips and batches that grow.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bigtrain.data.batch.loader
from bigtrain.config.batch_schedule import BatchSchedule
from bigtrain.data import Dataset, Loader, Packing, Plan, format_digest
from bigtrain.data.batch.assemble import assemble
from bigtrain.data.batch.batch import digest_rows
from bigtrain.data.order.mixture import MixturePhase
from tests.data.helpers import build_packs_of, plan_over, random_dataset

LENGTH = 16
PACKINGS = ("concat", "best_fit", "buckets")


@pytest.fixture(scope="module", autouse=True)
def plan_in_small_portions():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bigtrain.data.batch.loader, "ROWS_AHEAD", 8)
        yield


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    folder = tmp_path_factory.mktemp("once")
    sizes = ((700, 40), (330, 90), (100, 9))  # small: several epochs pass within a batch
    datasets = [
        random_dataset(folder / name, size, seed=i, source=name, longest=longest)
        for i, (name, (size, longest)) in enumerate(zip("abc", sizes, strict=True))
    ]
    for dataset in datasets:
        for packing in PACKINGS:
            build_packs_of(dataset.directory, packing, LENGTH)
    return datasets


@st.composite
def runs(draw: st.DrawFn, datasets: list[Dataset]) -> tuple[Plan, list[Packing], int, list[tuple[int, int, int]]]:
    """A plan, its steps, and the starts of the run: at which step, on how many ranks, in which micro-batches."""
    worlds = draw(st.lists(st.integers(1, 64), min_size=1, max_size=3))
    micro_batches = [draw(st.integers(1, 4)) for _ in worlds]
    unit = int(np.lcm.reduce([world * micro for world, micro in zip(worlds, micro_batches, strict=True)]))
    unit = unit if unit <= 256 else worlds[0] * micro_batches[0]
    starts = [pair for pair in zip(worlds, micro_batches, strict=True) if unit % (pair[0] * pair[1]) == 0]
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    batches = BatchSchedule([(draw(st.integers(1, 3)), size * unit) for size in sizes[:-1]], sizes[-1] * unit)
    weights = st.tuples(*[st.integers(0, 9)] * len(datasets)).filter(any)
    later = draw(st.lists(st.tuples(st.integers(1, 900), weights), max_size=2, unique_by=lambda phase: phase[0]))
    packing = draw(st.sampled_from(PACKINGS))
    plan, packings = plan_over(
        datasets,
        [1] * len(datasets),
        length=LENGTH,
        packing=packing,
        seed=draw(st.integers(0, 2**63)),
        batches=batches,
        phases=[MixturePhase(0, draw(weights)), *(MixturePhase(*phase) for phase in sorted(later))],
        skipped=[(start, start + 7) for start in draw(st.lists(st.integers(0, 500), max_size=2))],
    )
    steps = draw(st.integers(2, 8))
    resumed = sorted(draw(st.lists(st.integers(2, steps), min_size=len(starts) - 1, max_size=len(starts) - 1)))
    return plan, packings, steps, [(step, *start) for step, start in zip([1, *resumed], starts, strict=True)]


@settings(max_examples=20)
@given(st.data())
def test_every_sample_is_delivered_once_at_any_world_size(datasets: list[Dataset], data: st.DataObject) -> None:
    """Every sample is delivered exactly once, at any world size and across restarts."""
    plan, packings, steps, starts = data.draw(runs(datasets))
    wanted = plan.locate_many(np.arange(plan.batches.consumed_after(steps)))
    rows = assemble(packings, wanted.source, wanted.sequence)
    ends = [*(step - 1 for step, _, _ in starts[1:]), steps]
    for (first, world_size, micro_batch_size), last in zip(starts, ends, strict=True):
        loaders = [
            Loader(
                plan,
                packings,
                first_sample=plan.batches.consumed_after(first - 1),
                micro_batch_size=micro_batch_size,
                rank=rank,
                world_size=world_size,
            )
            for rank in range(world_size)
        ]
        for step in range(first, last + 1):
            samples = plan.batches.samples_of(step)
            parts = [next(loader) for loader in loaders]
            own = slice(samples.start, samples.stop)
            for name, expected in (("input_ids", rows.input_ids), ("labels", rows.next_ids)):
                got = np.concatenate([getattr(micro, name) for part in parts for micro in part.micro_batches])
                assert np.array_equal(got, expected[own])
            assert {part.first_sample for part in parts} == {samples.start}
            assert format_digest(sum(part.digest for part in parts)) == format_digest(
                digest_rows(rows.input_ids[own], 0)
            )
        for loader in loaders:
            loader.close()

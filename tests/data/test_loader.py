"""Promises of the loader."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bigtrain.base.errors import BigtrainError
from bigtrain.config.batch_schedule import BatchSchedule
from bigtrain.data import Dataset, Loader, MicroBatch, Packing, Plan, RankBatch, format_digest
from bigtrain.objective import AddressKeys
from tests.data.helpers import build_packs_of, plan_over, random_dataset

LENGTH = 16


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    folder = tmp_path_factory.mktemp("data")
    return [random_dataset(folder / name, 900, seed=i, source=name) for i, name in enumerate("ab")]


@pytest.fixture(scope="module")
def planned(datasets: list[Dataset]) -> tuple[Plan, list[Packing]]:
    return plan_over(datasets, [2, 1], length=LENGTH, seed=5)


def take(planned: tuple[Plan, list[Packing]], count: int, **arguments: int) -> list[RankBatch]:
    with Loader(*planned, **{"micro_batch_size": 4, **arguments}) as loader:
        return [next(loader) for _ in range(count)]


def rows(batches: list[RankBatch], field: str = "input_ids") -> torch.Tensor:
    return torch.cat([getattr(micro, field) for batch in batches for micro in batch.micro_batches])


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_global_batches_are_identical_at_any_world_and_micro_batch_size(
    planned: tuple[Plan, list[Packing]], world_size: int, micro_batch_size: int
) -> None:
    steps = 20  # more than an epoch
    whole = take(planned, steps, micro_batch_size=16)
    ranks = [
        take(planned, steps, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size)
        for rank in range(world_size)
    ]
    for step, one in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        for field in ("input_ids", "labels", "position_ids"):
            assert torch.equal(rows(parts, field), rows([one], field))
        assert {part.first_sample for part in parts} == {one.first_sample}
        assert sum(part.label_tokens for part in parts) == one.label_tokens
        assert sum(part.input_tokens for part in parts) == one.input_tokens
        digest = sum(torch.tensor(part.digest) for part in parts)  # int64, wraps around as an all-reduce does
        assert format_digest(int(digest)) == format_digest(one.digest)


def test_the_digest_depends_on_the_order_and_on_every_token(
    planned: tuple[Plan, list[Packing]], datasets: list[Dataset]
) -> None:
    digests = [batch.digest for batch in take(planned, 30)]
    assert len(set(digests)) == 30
    other_seed = plan_over(datasets, [2, 1], length=LENGTH, seed=6)
    assert not set(digests) & {batch.digest for batch in take(other_seed, 30)}


def test_a_resumed_loader_goes_on_with_the_same_batches(
    planned: tuple[Plan, list[Packing]], datasets: list[Dataset]
) -> None:
    whole = take(planned, 12)
    resumed = take(planned, 5, first_sample=7 * 16)
    assert [b.digest for b in resumed] == [b.digest for b in whole[7:]]
    assert [b.first_sample for b in resumed] == [b.first_sample for b in whole[7:]]
    assert torch.equal(rows(resumed), rows(whole[7:]))


def test_a_changed_batch_size_continues_the_same_order_of_samples(
    planned: tuple[Plan, list[Packing]], datasets: list[Dataset]
) -> None:
    whole = rows(take(planned, 6))
    warmed = plan_over(datasets, [2, 1], length=LENGTH, seed=5, batches=BatchSchedule([(3, 16)], 24))
    assert torch.equal(rows(take(warmed, 5, micro_batch_size=8)), whole)
    assert torch.equal(rows(take(warmed, 2, first_sample=3 * 16, micro_batch_size=8)), whole[3 * 16 :])
    with pytest.raises(ValueError, match="no step begins"):
        Loader(*warmed, first_sample=4 * 16, micro_batch_size=8)


@pytest.mark.parametrize("packing", ["concat", "best_fit", "buckets"])
def test_one_epoch_through_the_loader_is_every_token_once(tmp_path: Path, packing: str) -> None:
    dataset = random_dataset(tmp_path, 900, longest=120)
    build_packs_of(tmp_path, packing, LENGTH)
    plan, packings = plan_over([dataset], [1], length=LENGTH, batch=1, packing=packing)
    batches = take((plan, packings), plan.sources[0].sequences, micro_batch_size=1)
    assert sum(batch.input_tokens for batch in batches) == dataset.tokens
    assert sum(batch.label_tokens for batch in batches) == dataset.tokens - dataset.manifest.documents


def test_a_failure_in_the_background_is_raised_at_every_call(
    planned: tuple[Plan, list[Packing]], tmp_path: Path
) -> None:
    broken = [random_dataset(tmp_path / name, 900, seed=i, source=name) for i, name in enumerate("ab")]
    (tmp_path / "b" / "00001.doc").write_bytes(b"not a document table")
    started = time.monotonic()
    packings = plan_over(broken, [2, 1], length=LENGTH)[1]
    with Loader(planned[0], packings, micro_batch_size=4) as loader:
        with pytest.raises(BigtrainError, match=r"00001\.doc is not what its manifest says"):
            for _ in range(100):
                next(loader)
        with pytest.raises(BigtrainError, match=r"00001\.doc is not what its manifest says"):
            next(loader)
    assert time.monotonic() - started < 60


def test_a_pack_with_a_flipped_byte_stops_instead_of_changing_the_rows(tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path, 900)
    build_packs_of(tmp_path, "best_fit", LENGTH)
    packed = plan_over([dataset], [1], length=LENGTH, packing="best_fit")
    file = tmp_path / f"00001.best_fit-{LENGTH}.pack"
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)
    with pytest.raises(BigtrainError, match=r"00001\.best_fit-16\.pack was changed"):
        take(packed, 10)


def test_a_thread_that_dies_is_noticed_within_seconds(
    planned: tuple[Plan, list[Packing]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loader, "_produce", lambda self: None)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="ended without an error"):
        next(Loader(*planned, micro_batch_size=4))
    assert time.monotonic() - started < 60  # without it the loader waits for ever


def test_a_closed_loader_leaves_no_thread_and_ends(
    planned: tuple[Plan, list[Packing]], datasets: list[Dataset]
) -> None:
    loader = Loader(*planned, micro_batch_size=4, prefetch=1)
    next(loader)
    time.sleep(0.1)  # the thread is waiting for room
    loader.close()
    assert not loader._thread.is_alive()
    assert list(loader) == []
    loader.close()


def test_a_batch_that_does_not_divide_is_refused_with_a_way_out(
    planned: tuple[Plan, list[Packing]], datasets: list[Dataset]
) -> None:
    with pytest.raises(BigtrainError) as error:
        Loader(*plan_over(datasets, [1, 1], length=LENGTH, batch=10), micro_batch_size=2, world_size=4)
    assert "10" in str(error.value)
    assert "2 x 4 = 8" in str(error.value)
    assert "8 or 16" in str(error.value)


def test_the_datasets_must_be_those_of_the_plan(planned: tuple[Plan, list[Packing]], datasets: list[Dataset]) -> None:
    with pytest.raises(ValueError, match="not the datasets"):
        Loader(planned[0], planned[1][::-1], micro_batch_size=4)


def test_micro_batches_are_tensors_ready_for_the_model(
    planned: tuple[Plan, list[Packing]], datasets: list[Dataset]
) -> None:
    (batch,) = take(planned, 1)
    assert len(batch.micro_batches) == 4
    for micro in batch.micro_batches:
        assert isinstance(micro, MicroBatch)
        assert micro.label_tokens == int((micro.labels != -100).sum())
        assert int(micro.cu_seqlens[-1]) == 4 * LENGTH
        assert micro.max_seqlen == int(micro.cu_seqlens.diff().max())


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 4), (2, 2), (4, 1)])
def test_keys_of_rows_follow_from_addresses_and_change_nothing_else(
    planned: tuple[Plan, list[Packing]], world_size: int, micro_batch_size: int
) -> None:
    """They are those of `AddressKeys`, one for each row, and none twice, in the second epoch neither. Digests and all
    other inputs are as without them."""
    plan, _ = planned
    steps = 80
    plain = take(planned, steps, micro_batch_size=16)
    ranks = [
        take(planned, steps, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size, keyed=True)
        for rank in range(world_size)
    ]
    keys = AddressKeys(plan.seed, [source.name for source in plan.sources])
    found = []
    for step, one in enumerate(plain):
        parts = [rank[step] for rank in ranks]
        micros = [micro for part in parts for micro in part.micro_batches]
        found.append(torch.cat([micro.model_inputs()["row_keys"] for micro in micros]))
        wanted = keys.of(*plan.locate_many(np.arange(16) + one.first_sample)).view(np.int64)
        assert found[-1].tolist() == wanted.tolist()
        assert torch.equal(rows(parts), rows([one]))
        assert int(sum(torch.tensor(part.digest) for part in parts)) == one.digest
        assert all(part.inputs_digest == 0 for part in parts)
    assert all("row_keys" not in micro.model_inputs() for micro in plain[0].micro_batches)
    assert len(torch.cat(found).unique()) == 16 * steps
    assert max(plan.locate(16 * steps - 1 - back).epoch for back in range(16)) > 0

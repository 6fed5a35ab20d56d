"""Promises of the validation batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bigtrain.data import Dataset, MicroBatch, validation_batches
from bigtrain.data.batch.packing import ConcatPacking
from tests.data.helpers import random_dataset, write_dataset

LENGTH = 16


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return random_dataset(tmp_path_factory.mktemp("data"), 1000)


def batches(dataset: Dataset, limit: int | None, rank: int = 0, world_size: int = 1, size: int = 4) -> list[MicroBatch]:
    arguments = {"max_sequences": limit, "micro_batch_size": size}
    return list(validation_batches(ConcatPacking(dataset, LENGTH), **arguments, rank=rank, world_size=world_size))


def labelled_rows(found: list[MicroBatch]) -> list[tuple[list[int], list[int]]]:
    """Rows with at least one label, as input ids and labels."""
    return [
        (ids.tolist(), labels.tolist())
        for batch in found
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True)
        if (labels != -100).any()
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("limit", [None, 1, 7, 30])
def test_the_same_rows_at_any_world_size_in_equally_many_micro_batches(
    dataset: Dataset, world_size: int, limit: int | None
) -> None:
    one = labelled_rows(batches(dataset, limit, size=1))
    ranks = [batches(dataset, limit, rank, world_size) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    assert all(batch.input_ids.shape == (4, LENGTH) for rank in ranks for batch in rank)
    assert [row for rank in ranks for row in labelled_rows(rank)] == one
    label_tokens = sum(batch.label_tokens for rank in ranks for batch in rank)
    assert label_tokens == sum(sum(label != -100 for label in labels) for _, labels in one)


def test_a_smaller_number_is_a_subset_of_a_larger(dataset: Dataset) -> None:
    many, few = labelled_rows(batches(dataset, 40, size=1)), labelled_rows(batches(dataset, 10, size=1))
    assert few == many[: len(few)]


def test_all_sequences_hold_every_label_once(dataset: Dataset) -> None:
    found = batches(dataset, None)
    assert sum(batch.label_tokens for batch in found) == dataset.tokens - dataset.manifest.documents
    assert sum(batch.input_tokens for batch in found) == dataset.tokens


def test_rows_of_padding_have_no_labels_and_are_whole(dataset: Dataset) -> None:
    (batch,) = batches(dataset, 1)
    assert (batch.labels[1:] == -100).all()
    assert torch.equal(batch.position_ids[1], torch.arange(LENGTH))
    assert batch.cu_seqlens[-4:].tolist() == [LENGTH, 2 * LENGTH, 3 * LENGTH, 4 * LENGTH]


def test_a_source_without_held_out_documents_yields_nothing_on_all_ranks(tmp_path: Path) -> None:
    empty = write_dataset(tmp_path, [])
    assert [batches(empty, 8, rank, 2) for rank in range(2)] == [[], []]

"""Promises of concat packing and of the rows made from it, against a slow reference."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.data.batch.assemble import assemble
from bigtrain.data.batch.batch import micro_batches_of
from bigtrain.data.batch.packing import ConcatPacking
from bigtrain.data.store.store import Dataset
from bigtrain.objective import Causal, TokenRows
from tests.data.helpers import END, write_dataset

documents = st.lists(st.integers(0, 999), max_size=12)  # id 0 is end-of-text: also inside texts
corpora = st.lists(st.lists(documents, max_size=5), min_size=1, max_size=4).filter(any)


def pack(dataset: Dataset, sequences: Sequence[int], length: int) -> TokenRows:
    return assemble([ConcatPacking(dataset, length)], np.zeros(len(sequences), np.int64), np.array(sequences))


def count_of(dataset: Dataset, length: int) -> int:
    return ConcatPacking(dataset, length).rows


def reference(shards: list[list[list[int]]], length: int) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Rows of tokens, labels and positions, token by token."""
    stream = [
        (token, number, index)
        for number, document in enumerate(document for shard in shards for document in shard)
        for index, token in enumerate([*document, END])
    ]
    rows, labels, positions = [], [], []
    for start in range(0, len(stream), length):
        row = stream[start : start + length]
        rows.append([token for token, _, _ in row] + [END] * (length - len(row)))
        following = stream[start + 1 : start + 1 + length]
        labels.append([IGNORE_INDEX] * length)
        for place, (after, here) in enumerate(zip(following, row, strict=False)):
            if after[1] == here[1]:
                labels[-1][place] = after[0]
        first = {}
        for place, (_, number, _) in enumerate(row):
            first.setdefault(number, place)
        positions.append([place - first[number] for place, (_, number, _) in enumerate(row)])
        positions[-1] += range(length - len(row))
    return rows, labels, positions


@settings(max_examples=60, deadline=None)
@given(corpora, st.integers(1, 17))
def test_rows_labels_and_positions_are_those_of_the_reference(shards: list[list[list[int]]], length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder), shards)
        count = count_of(dataset, length)
        packed = pack(dataset, range(count), length)
    rows, labels, positions = reference(shards, length)
    assert packed.input_ids.tolist() == rows
    assert packed.next_ids.tolist() == labels
    assert packed.positions.tolist() == positions
    starts = np.flatnonzero(np.array(positions).reshape(-1) == 0).tolist()
    assert packed.boundaries.tolist() == [*starts, count * length]
    assert packed.next_tokens.tolist() == np.sum(packed.next_ids != IGNORE_INDEX, axis=1).tolist()
    assert packed.input_tokens.sum() == dataset.tokens


@settings(max_examples=30, deadline=None)
@given(corpora, st.integers(1, 17))
def test_every_token_is_an_input_once_and_every_successor_a_label_once(
    shards: list[list[list[int]]], length: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder), shards)
        packed = pack(dataset, range(count_of(dataset, length)), length)
    texts = [[*document, END] for shard in shards for document in shard]
    stream = [token for text in texts for token in text]
    assert packed.input_ids.reshape(-1)[: len(stream)].tolist() == stream
    labels = packed.next_ids.reshape(-1)
    assert labels[labels != IGNORE_INDEX].tolist() == [token for text in texts for token in text[1:]]


@settings(max_examples=30, deadline=None)
@given(corpora, st.integers(1, 17))
def test_rows_without_next_ids_are_the_same_otherwise(shards: list[list[list[int]]], length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder), shards)
        sequences = np.arange(count_of(dataset, length))
        packings = [ConcatPacking(dataset, length)]
        whole, without = (
            assemble(packings, np.zeros_like(sequences), sequences, with_next=with_next) for with_next in (True, False)
        )
    assert without.next_ids.shape == (len(sequences), 0)
    for name in ("input_ids", "positions", "boundaries", "input_tokens"):
        assert np.array_equal(getattr(whole, name), getattr(without, name))
    for rows in (whole, without):
        rows.withhold(0, 0, 1)
    assert whole.withheld == without.withheld


def test_the_order_of_rows_in_a_batch_does_not_change_a_row(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [[[1, 2, 3, 4, 5, 6], [7, 8]], [[9] * 9]])
    alone = [pack(dataset, [s], 4) for s in range(count_of(dataset, 4))]
    together = pack(dataset, range(len(alone))[::-1], 4)
    for row, single in enumerate(reversed(alone)):
        assert together.input_ids[row].tolist() == single.input_ids[0].tolist()
        assert together.next_ids[row].tolist() == single.next_ids[0].tolist()
        assert together.positions[row].tolist() == single.positions[0].tolist()


def test_ids_above_65535_survive(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [[[70_000, 150_000]]], vocab_size=151_000)
    assert dataset.shards[0].tokens.dtype == np.dtype("<u4")
    assert pack(dataset, [0], 3).input_ids[0].tolist() == [70_000, 150_000, END]


def test_a_micro_batch_has_the_dtypes_and_shapes_it_says(tmp_path: Path) -> None:
    import torch

    dataset = write_dataset(tmp_path, [[[1, 2, 3], [4, 5]]])
    (batch,) = micro_batches_of(Causal().prepare(pack(dataset, [0, 1], 4), np.zeros(2, np.uint64)), 2)
    on_device = batch.to("cpu")
    for name in ("input_ids", "labels", "position_ids"):
        for tensor, dtype in ((getattr(batch, name), torch.int32), (getattr(on_device, name), torch.int64)):
            assert (tensor.dtype, tensor.shape, tensor.is_contiguous()) == (dtype, (2, 4), True)
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.cu_seqlens.tolist() == [0, 4, 7, 8]
    assert set(batch.to("cpu").model_inputs()) == {
        "input_ids", "labels", "position_ids", "cu_seqlens", "max_seqlen",
    }  # fmt: skip

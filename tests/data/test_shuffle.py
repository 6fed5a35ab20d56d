"""Promises of shuffling by blocks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.data.order.shuffle import BlockShuffle


def order_of(shuffle: BlockShuffle, numbers: range) -> list[int]:
    return shuffle.many(np.arange(numbers.start, numbers.stop, dtype=np.uint64)).tolist()


shapes = st.tuples(st.integers(1, 300), st.integers(1, 20), st.integers(1, 6))


@given(shapes, st.integers(0, 2**63))
def test_every_sequence_comes_exactly_once_an_epoch(shape: tuple[int, int, int], seed: int) -> None:
    shuffle = BlockShuffle(*shape, seed, "source", 0)
    order = order_of(shuffle, range(shape[0]))
    assert sorted(order) == list(range(shape[0]))
    assert shuffle.inverse(np.array(order, np.uint64)).tolist() == list(range(shape[0]))


@given(shapes, st.integers(0, 2**63))
def test_a_window_of_blocks_is_used_up_before_another_is_touched(shape: tuple[int, int, int], seed: int) -> None:
    n, block, window = shape
    blocks = [sequence // block for sequence in order_of(BlockShuffle(*shape, seed, "source", 0), range(n))]
    windows = [set(blocks[start : start + block * window]) for start in range(0, n, block * window)]
    assert all(len(touched) <= window + 1 for touched in windows)  # one more: the block that is not full
    assert sum(map(len, windows)) <= -(-n // block)


def test_blocks_and_what_is_in_them_are_in_another_order_in_every_epoch() -> None:
    epochs = [order_of(BlockShuffle(10_000, 100, 5, 1, "source", epoch), range(10_000)) for epoch in range(2)]
    blocks = [[sequence // 100 for sequence in order] for order in epochs]
    assert set(blocks[0][:500]) != set(blocks[1][:500])
    assert np.mean(np.array(epochs[0]) == np.array(epochs[1])) < 0.01
    assert len(set(blocks[0][:25])) > 3  # the blocks of a window are mixed with each other


def test_it_is_as_exact_among_ten_trillion() -> None:
    shuffle = BlockShuffle(10**13 + 7, 8192, 16, 1, "source", 0)
    numbers = np.array([0, 10**6, 10**12, 10**13 + 6], np.uint64)
    assert shuffle.inverse(shuffle.many(numbers)).tolist() == numbers.tolist()
    assert shuffle.many(numbers).max() < 10**13 + 7

"""The order of a source's sequences within one epoch: shuffled over the whole epoch, or within a window of blocks.

`Permutation` shuffles over the whole epoch. For remote data nearly every sequence would then fetch a block of its own.
`BlockShuffle` takes full blocks of `block` sequences in a permuted order, `window` of them at a time, and permutes the
sequences of a window. A window is used up before the next starts. The sequences that do not fill a block are at the end
of the last window, so that everything has a closed form:

    number k of the epoch  ->  window w = k // (window * block), item = Permutation_w(k % (window * block))
                           ->  slot = w * window + item // block  ->  block Permutation(slot)  ->  sequence
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bigtrain.data.order.permutation import permutation

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


class Shuffle(Protocol):
    """A bijection of range(n)."""

    def many(self, x: U64) -> U64:
        """The sequences (u64) at these numbers (u64) of the epoch."""
        ...

    def inverse(self, y: U64) -> U64:
        """The numbers of these sequences in the epoch: `inverse(many(x)) == x`."""
        ...


class BlockShuffle:
    """The order of n sequences in windows of blocks, for a key such as (seed, source, epoch).

    Args:
        n: sequences in the epoch.
        block: sequences in one block.
        window: blocks that are shuffled together.
        key: of the permutations.
        full_blocks: blocks that change places. Default: all that have `block` sequences.
    """

    def __init__(self, n: int, block: int, window: int, *key: int | str, full_blocks: int | None = None) -> None:
        self.n, self.block, self.window, self.key = n, block, window, key
        self._blocks = n // block if full_blocks is None else full_blocks
        self._per_window = np.uint64(block * window)

    def many(self, x: U64) -> U64:
        """The sequences (u64) at these numbers (u64) of the epoch."""
        y = np.empty_like(x)
        windows, numbers = np.divmod(x, self._per_window)
        for w, own in _groups(windows):
            item = permutation(self._size(w), "window", w, *self.key).many(numbers[own])
            slot, within = np.divmod(item, np.uint64(self.block))
            y[own] = self._at_full_blocks(slot + np.uint64(w * self.window), self._block_order) * np.uint64(self.block)
            y[own] += within
        return y

    def inverse(self, y: U64) -> U64:
        """The numbers of these sequences in the epoch."""
        blocks, within = np.divmod(y, np.uint64(self.block))
        slots = self._at_full_blocks(blocks, self._slot_of)
        windows, slot = np.divmod(slots, np.uint64(self.window))
        item = slot * np.uint64(self.block) + within
        x = np.empty_like(y)
        for w, own in _groups(windows):
            x[own] = permutation(self._size(w), "window", w, *self.key).inverse(item[own])
            x[own] += np.uint64(w) * self._per_window
        return x

    def _size(self, w: int) -> int:
        """Sequences in a window; the last window has the rest."""
        start = w * self.window * self.block
        return min(self.window * self.block, self.n - start)

    def _block_order(self, slots: U64) -> U64:
        return permutation(self._blocks, "blocks", *self.key).many(slots)

    def _slot_of(self, blocks: U64) -> U64:
        return permutation(self._blocks, "blocks", *self.key).inverse(blocks)

    def _at_full_blocks(self, places: U64, function: Callable[[U64], U64]) -> U64:
        """Apply a permutation of the full blocks; the block that is not full stays last."""
        places = places.copy()
        full = np.flatnonzero(places < np.uint64(self._blocks))
        if len(full):
            places[full] = function(places[full])
        return places


def _groups(values: U64) -> list[tuple[int, I64]]:
    """Each distinct value, and its indices."""
    distinct, inverse = np.unique(values, return_inverse=True)
    return [(int(value), np.flatnonzero(inverse == index)) for index, value in enumerate(distinct)]

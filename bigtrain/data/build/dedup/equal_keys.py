"""Documents with equal keys, over all sources, found by sorting in portions of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
"""[documents, 1 or 2]: the key of each document of a source, in parts of 64 bits. Zeros mean no key."""
Positions = npt.NDArray[np.int64]
"""Documents, numbered over all sources in their order."""

KEYS_AT_ONCE = 1 << 23
ROWS_AT_ONCE = 1 << 20


def repeated(sources: Sequence[Keys], keys_at_once: int = KEYS_AT_ONCE) -> Iterator[tuple[Positions, Positions]]:
    """The documents whose key an earlier one has, each with the first that has it; one portion at a time.

    A portion has about `keys_at_once` keys, selected by their value. The pairs are the same for any size of portions,
    but not their order.
    """
    starts = np.cumsum([0, *map(len, sources)])
    portions = -(-int(starts[-1]) // keys_at_once)
    for portion in range(portions):
        keys, positions = _portion(sources, starts, portion, portions)
        order = np.lexsort(keys.T)  # stable: of equal keys the first position stays first
        keys, positions = keys[order], positions[order]
        new = np.ones(len(keys), np.bool_)
        new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        firsts = positions[new][np.cumsum(new) - 1]
        yield positions[~new], firsts[~new]


def _portion(sources: Sequence[Keys], starts: Positions, portion: int, portions: int) -> tuple[Keys, Positions]:
    keys, positions = [np.empty((0, sources[0].shape[1]), np.uint64)], [np.empty(0, np.int64)]
    for source, start in zip(sources, starts, strict=False):
        for row in range(0, len(source), ROWS_AT_ONCE):
            rows = np.asarray(source[row : row + ROWS_AT_ONCE])
            chosen = np.flatnonzero((rows[:, 0] % np.uint64(portions) == portion) & rows.any(axis=1))
            keys.append(rows[chosen])
            positions.append(start + row + chosen)
    return np.concatenate(keys), np.concatenate(positions)

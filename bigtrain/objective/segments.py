"""Rows put together from segments: runs of tokens of other rows, and single tokens."""

from __future__ import annotations

import numpy as np

from bigtrain.objective.rows import I32, I64
from bigtrain.objective.subsets import ragged


def joined(ids: I32, starts: I64, lengths: I64) -> I32:
    """Segments one after the other: int32 [sum of lengths].

    Args:
        ids: the flattened tokens.
        starts: [n], where a segment begins in `ids`; -1 - id for a single token `id`.
        lengths: [n]; 1 for a single token.
    """
    result = ids[ragged(np.maximum(starts, 0), lengths)]
    single = np.flatnonzero(starts < 0)
    result[np.cumsum(lengths)[single] - 1] = -1 - starts[single]
    return result

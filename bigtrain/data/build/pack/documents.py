"""What a packing knows of the documents that it packs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class DocumentGroup:
    """Consecutive documents of a shard."""

    lengths: npt.NDArray[np.int64]
    """[n], in tokens."""
    sentence_ends: npt.NDArray[np.bool_]
    """[their tokens], whether a token ends a sentence; [0] for a packing that does not ask for sentences."""
    first: int = 0
    """The place of the first token in the shard."""

"""Connected components of documents (union-find, Tarjan 1975), in arrays: 4 bytes per document, 8 from 2^32 on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bigtrain.data.build.dedup.equal_keys import Positions


class Components:
    """Documents 0 to count - 1, each in a component of its own at first. A component is named by its first document.

    Each document points to an earlier one of its component, or to itself. So the root of a tree is its first document,
    for any order of the pairs.
    """

    def __init__(self, count: int) -> None:
        dtype = np.uint32 if count <= 1 << 32 else np.uint64
        self._parents: npt.NDArray[np.unsignedinteger] = np.arange(count, dtype=dtype)

    def unite(self, documents: Positions, others: Positions) -> None:
        """Unite the components of each pair."""
        while len(documents):
            documents, others = self.first(documents), self.first(others)
            apart = documents != others
            documents, others = documents[apart], others[apart]
            later, earlier = np.maximum(documents, others), np.minimum(documents, others)
            # A root with several new parents gets the first of them; the other pairs are repeated.
            np.minimum.at(self._parents, later, earlier.astype(self._parents.dtype))

    def first(self, documents: Positions) -> Positions:
        """The first document of the component of each document."""
        while True:
            parents = self._parents[documents]
            grandparents = self._parents[parents]
            if (parents == grandparents).all():
                return parents.astype(np.int64)
            self._parents[documents] = grandparents  # shortens the paths (van Leeuwen and van der Weide 1977)

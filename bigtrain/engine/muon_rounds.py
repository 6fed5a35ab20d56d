"""Which rank orthogonalises which matrix, and what it has to be sent for it.

A rank that holds more than half of a matrix works on it; the others are shared out, the dearest first, to whoever has
least to do. At ZeRO stages 1 and 2 that leaves little to send: most matrices lie wholly on one rank. At stage 3, where
each is cut into equal parts, the work is spread evenly. Rounds without anything to send come last and need no
collective at all.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Round:
    """One matrix for each rank, or none, as one rank sees it. Lists are by rank; a part may be empty."""

    shape: tuple[int, int] | None
    """Of this rank's own matrix."""
    parts_of_matrix: list[slice]
    """Which elements of this rank's flattened matrix the ranks hold."""
    parts_of_owner: list[slice]
    """Where in this rank's owner it holds its pieces of the ranks' matrices."""
    scales: list[float]
    """What the update of each rank's matrix is multiplied with."""
    is_local: bool
    """Whether every rank has the whole of its matrix."""

    @property
    def received(self) -> list[int]:
        """How many elements come from each rank."""
        return [part.stop - part.start for part in self.parts_of_matrix]

    @property
    def sent(self) -> list[int]:
        """How many elements go to each rank."""
        return [part.stop - part.start for part in self.parts_of_owner]

    def to_workers(self, pieces: Tensor) -> Tensor:
        """Give this rank's pieces, in the order of ranks, for those of its matrix."""
        return self._exchanged(pieces, self.sent, self.received)

    def to_owners(self, pieces: Tensor) -> Tensor:
        """The same back."""
        return self._exchanged(pieces, self.received, self.sent)

    def _exchanged(self, pieces: Tensor, give: list[int], take: list[int]) -> Tensor:
        if self.is_local:
            return pieces
        taken = pieces.new_empty(sum(take))
        dist.all_to_all_single(taken, pieces, take, give)
        return taken


def plan_rounds(shapes: Sequence[tuple[int, int]], table: Tensor, rank: int) -> list[Round]:
    """The rounds of one owner, as many on every rank.

    Args:
        shapes: of the matrices.
        table: [matrices, ranks, 3] int64: rank r has elements [offset, offset + length) of the flattened matrix, and
            they lie in its owner from `start` on.
        rank: whose view is wanted.
    """
    rounds = []
    for matrices in zip_longest(*_work(shapes, table[:, :, 1])):
        mine = matrices[rank]
        own = [(0, 0, 0) if matrix is None else table[matrix, rank].tolist() for matrix in matrices]
        of_mine = [(0, 0)] * len(matrices) if mine is None else table[mine, :, :2].tolist()
        rounds.append(
            Round(
                shape=None if mine is None else shapes[mine],
                parts_of_matrix=[slice(offset, offset + length) for offset, length in of_mine],
                parts_of_owner=[slice(start, start + length) for _, length, start in own],
                scales=[0.0 if matrix is None else 0.2 * math.sqrt(max(shapes[matrix])) for matrix in matrices],
                is_local=all(
                    matrix is None or int(table[matrix, worker, 1]) == math.prod(shapes[matrix])
                    for worker, matrix in enumerate(matrices)
                ),
            )
        )
    return rounds


def _work(shapes: Sequence[tuple[int, int]], lengths: Tensor) -> list[list[int]]:
    """For each rank the matrices that it works on, those first of which others hold a part."""
    sizes = [math.prod(shape) for shape in shapes]
    costs = [size * min(shape) for size, shape in zip(sizes, shapes, strict=True)]
    largest, holders = (column.tolist() for column in lengths.max(dim=1))
    queues: list[list[int]] = [[] for _ in range(lengths.shape[1])]
    loads = [0] * len(queues)
    shared = []
    for matrix in sorted(range(len(shapes)), key=lambda matrix: -costs[matrix]):
        if 2 * largest[matrix] > sizes[matrix]:
            queues[holders[matrix]].append(matrix)
            loads[holders[matrix]] += costs[matrix]
        else:
            shared.append(matrix)
    idlest = [(load, worker) for worker, load in enumerate(loads)]
    heapq.heapify(idlest)
    for matrix in shared:
        load, worker = heapq.heappop(idlest)
        queues[worker].append(matrix)
        heapq.heappush(idlest, (load + costs[matrix], worker))
    return [sorted(queue, key=lambda matrix: largest[matrix] == sizes[matrix]) for queue in queues]

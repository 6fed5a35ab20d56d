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


@dataclass(frozen=True)
class Held:
    """A matrix, and who holds most of it."""

    matrix: int
    """Its number."""
    shape: tuple[int, int]
    largest: int
    """Elements of the largest piece that a rank holds."""
    holder: int
    """The lowest rank with such a piece."""

    @property
    def is_whole(self) -> bool:
        """Whether one rank has all of it."""
        return self.largest == math.prod(self.shape)


def share_out(matrices: Sequence[Held], ranks: int) -> list[list[Held]]:
    """For each rank the matrices that it works on, those first of which others hold a part. The same on every rank."""
    costs = {each.matrix: math.prod(each.shape) * min(each.shape) for each in matrices}
    queues: list[list[Held]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    shared = []
    for each in sorted(matrices, key=lambda each: -costs[each.matrix]):
        if 2 * each.largest > math.prod(each.shape):
            queues[each.holder].append(each)
            loads[each.holder] += costs[each.matrix]
        else:
            shared.append(each)
    idlest = [(load, worker) for worker, load in enumerate(loads)]
    heapq.heapify(idlest)
    for each in shared:
        load, worker = heapq.heappop(idlest)
        queues[worker].append(each)
        heapq.heappush(idlest, (load + costs[each.matrix], worker))
    return [sorted(queue, key=lambda each: each.is_whole) for queue in queues]


def plan_rounds(
    work: Sequence[Sequence[Held]], own: Sequence[Sequence[int]], of_mine: Tensor, rank: int
) -> list[Round]:
    """The rounds of one owner as one rank sees them, as many on every rank.

    Args:
        work: what `share_out` returned.
        own: for each matrix by its number: this rank has elements [offset, offset + length) of the flattened matrix,
            and they lie in its owner from `start` on.
        of_mine: [ranks, matrices, 2] int64: offset and length of what each rank has of the matrices that this one works
            on, in the order of its work.
        rank: whose view is wanted.
    """
    rounds = []
    for number, matrices in enumerate(zip_longest(*work)):
        mine = matrices[rank]
        here = [(0, 0, 0) if each is None else own[each.matrix] for each in matrices]
        there = [(0, 0)] * len(matrices) if mine is None else of_mine[:, number].tolist()
        rounds.append(
            Round(
                shape=None if mine is None else mine.shape,
                parts_of_matrix=[slice(offset, offset + length) for offset, length in there],
                parts_of_owner=[slice(start, start + length) for _, length, start in here],
                scales=[0.0 if each is None else 0.2 * math.sqrt(max(each.shape)) for each in matrices],
                is_local=all(each is None or each.is_whole for each in matrices),
            )
        )
    return rounds

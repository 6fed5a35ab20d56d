"""Stragglers: ranks that compute more slowly than the others. All wait for them, so the whole job is as slow.

The ranks compare the time of their own work, without any waiting. At ZeRO stages 0 to 2 that is the forward pass, in
which nothing is exchanged. Its seconds show whatever slows the rank: a hot GPU, a core that others use, full memory.
At stage 3 every layer's weights come from all ranks, so a slow rank makes all forward passes equally long. There a
matrix product of the model's size is timed instead. It shows a slow device, and nothing else.

The value of a window is the median of its steps. A rank is named when it was slower than the median of the others, by
the set share, in three windows in a row. A single hiccup makes no straggler.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bigtrain.base import gather
from bigtrain.config import Settings
from bigtrain.engine import Topology

WINDOWS = 3
"""Windows in a row in which a rank has to be slow."""
LEAST_SECONDS = 0.002
"""Seconds by which it has to be slower at least. Less is noise, whatever share of a tiny model's step it is."""
PROBES = 5
"""Matrix products of which the median counts."""


@dataclass(frozen=True)
class Straggler:
    """A rank that has become slow, or has caught up."""

    rank: int
    host: str
    seconds: float
    """Of its own work in a step."""
    others_seconds: float
    """The median of the other ranks."""
    slow: bool
    """False where it has caught up."""

    def __str__(self) -> str:
        name = f"rank {self.rank} on {self.host}"
        if not self.slow:
            return f"{name} has caught up with the others"
        return (
            f"{name} is slow: {self.seconds * 1000:.1f} ms of its own work a step, the others "
            f"{self.others_seconds * 1000:.1f} ms, and all wait for it"
        )


class RankComparison:
    """Compares all ranks from window to window, and finds those that stay slow.

    Args:
        share: by which a rank has to be slower than the median of the others, 0.2 for 20%.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._in_a_row: dict[int, int] = {}
        self._named: set[int] = set()

    def add(self, seconds: Sequence[float], hosts: Sequence[str]) -> list[Straggler]:
        """Add a window; return the ranks that have become slow or caught up with it.

        Args:
            seconds: of each rank's own work in a step.
            hosts: the host of each rank.
        """
        news = []
        for rank, (own, others) in enumerate(zip(seconds, medians_of_others(seconds), strict=True)):
            slow = own > others * (1 + self._share) and own - others > LEAST_SECONDS
            self._in_a_row[rank] = self._in_a_row.get(rank, 0) + 1 if slow else 0
            if self._in_a_row[rank] >= WINDOWS and rank not in self._named:
                self._named.add(rank)
                news.append(Straggler(rank, hosts[rank], own, others, slow=True))
            elif not slow and rank in self._named:
                self._named.discard(rank)
                news.append(Straggler(rank, hosts[rank], own, others, slow=False))
        return news


def medians_of_others(values: Sequence[float]) -> list[float]:
    """Return for each of two or more values the median of all others, from one sort.

    Without a value, those after it in the order move up by one place.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    medians = [0.0] * len(values)
    low, high = (len(values) - 2) // 2, (len(values) - 1) // 2  # the middle places among the others
    for place, index in enumerate(order):
        middle = [values[order[each + (each >= place)]] for each in (low, high)]
        medians[index] = middle[0] if low == high else sum(middle) / 2
    return medians


class OwnWork:
    """The time of this rank's own work, and how it compares with the other ranks'."""

    def __init__(self, settings: Settings, topology: Topology) -> None:
        self._every = settings.guard.straggler_every_steps if topology.world_size > 1 else None
        self._comparison = RankComparison(settings.guard.straggler_share)
        self._topology = topology
        self._probes = settings.engine.zero_stage == 3
        self._shape = settings.model.hidden_size, settings.model.intermediate_size or settings.model.hidden_size
        self._seconds: list[float] = []
        self._hosts: list[str] | None = None
        """Of all ranks, on rank 0."""
        self._compiled = False
        """Whether a window has passed. The first one includes compilation, so it is dropped."""

    def add(self, forward_seconds: float) -> list[Straggler]:
        """Add a step; at the end of a window return the ranks that have become slow or caught up.

        Every rank calls it, and gets the same result.

        Args:
            forward_seconds: of this rank's forward passes in the step.
        """
        if self._every is None:
            return []
        self._seconds.append(forward_seconds)
        if len(self._seconds) < self._every:
            return []
        own = self._probe() if self._probes else statistics.median(self._seconds)
        self._seconds.clear()
        if not self._compiled:
            self._hosts, self._compiled = gather(self._topology, socket.gethostname()), True
            return []
        of_ranks, news = gather(self._topology, own), None
        if of_ranks is not None and self._hosts is not None:
            news = self._comparison.add(of_ranks, self._hosts)
        found: list[Straggler] = self._topology.broadcast(news)
        return found

    def _probe(self) -> float:
        hidden, intermediate = self._shape
        device = self._topology.device
        rows, weight = torch.ones(512, hidden, device=device), torch.ones(hidden, intermediate, device=device)
        taken = []
        for _ in range(PROBES):
            _wait_for(device)
            started = time.perf_counter()
            rows @ weight
            _wait_for(device)
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

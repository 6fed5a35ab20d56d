"""Ranks that compute more slowly than the others: all wait for them, so the whole job is as slow as they are.

Compared is a rank's own work, without what it waits for. At ZeRO stages 0 to 2 that is the forward pass, in which
nothing is exchanged: its seconds are the rank's alone, whatever slows it down (a GPU that runs hot, a core that others
use, memory that is nearly full). At stage 3 every layer's weights come from all ranks, so that a slow rank makes all
forward passes equally long; there a matrix product of the model's size is timed instead, which shows a slow device and
nothing else.

A window's value is the median of its steps, and a rank is named when it was slower than the median of the others by the
set share in three windows in a row: no single hiccup is a straggler.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bigtrain.config import Settings
from bigtrain.engine.topology import Topology

WINDOWS = 3
"""In a row that a rank has to be slow in."""
LEAST_SECONDS = 0.002
"""By which it has to be slower at least: less is noise, whatever share of a tiny model's step it is."""
PROBES = 5


@dataclass(frozen=True)
class Straggler:
    """A rank that has been found slow, or is so no longer."""

    rank: int
    host: str
    seconds: float
    """Of its own work, a step."""
    others_seconds: float
    """The median of the other ranks."""
    slow: bool
    """False: it has caught up."""

    def __str__(self) -> str:
        who = f"rank {self.rank} on {self.host}"
        if not self.slow:
            return f"{who} has caught up with the others"
        return (
            f"{who} is slow: {self.seconds * 1000:.1f} ms of its own work a step, the others "
            f"{self.others_seconds * 1000:.1f} ms, and all wait for it"
        )


class Comparison:
    """Of all ranks, from window to window: who is slow persistently."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._in_a_row: dict[int, int] = {}
        self._named: set[int] = set()

    def add(self, seconds: Sequence[float], hosts: Sequence[str]) -> list[Straggler]:
        """A window is over; returns what is new.

        Args:
            seconds: each rank's own work.
            hosts: each rank's.
        """
        news = []
        for rank, own in enumerate(seconds):
            others = statistics.median([*seconds[:rank], *seconds[rank + 1 :]])
            slow = own > others * (1 + self._share) and own - others > LEAST_SECONDS
            self._in_a_row[rank] = self._in_a_row.get(rank, 0) + 1 if slow else 0
            if self._in_a_row[rank] >= WINDOWS and rank not in self._named:
                self._named.add(rank)
                news.append(Straggler(rank, hosts[rank], own, others, slow=True))
            elif not slow and rank in self._named:
                self._named.discard(rank)
                news.append(Straggler(rank, hosts[rank], own, others, slow=False))
        return news


class OwnWork:
    """This rank's side of it, and on every rank the same news."""

    def __init__(self, settings: Settings, topology: Topology) -> None:
        self._every = settings.guard.straggler_every_steps if topology.world_size > 1 else None
        self._comparison = Comparison(settings.guard.straggler_share)
        self._topology = topology
        self._probes = settings.engine.zero_stage == 3
        self._shape = settings.model.hidden_size, settings.model.intermediate_size
        self._seconds: list[float] = []
        self._hosts: list[str] = []

    def add(self, forward_seconds: float) -> list[Straggler]:
        """A step is done; at the end of a window returns what is new, the same on all ranks. Every rank calls it."""
        if self._every is None:
            return []
        self._seconds.append(forward_seconds)
        if len(self._seconds) < self._every:
            return []
        own = self._probe() if self._probes else statistics.median(self._seconds)
        self._seconds.clear()
        if not self._hosts:  # the first window holds what compiles, and is for nothing else
            self._hosts = self._topology.all_gather(socket.gethostname())
            return []
        return self._comparison.add(self._topology.all_gather(own), self._hosts)

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

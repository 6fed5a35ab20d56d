"""Which nodes form the next round of a job, and in which order: decisions without a network or a clock.

A round is one start of the ranks on all nodes. The first node decides alone, from what the others have sent:

    forming   nodes join; the round starts when MAX are there, or MIN and the last call is over
    running   a node that joins waits; when a node of the round joins again, its ranks have ended: forming

A round that forms after another waits for those of its nodes that are alive, since they are about to join again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NAMED = 8
"""So many nodes are named in a message, at most."""


class NotMetError(Exception):
    """Raised when the nodes of a round have not come in time; the message names those that are missing."""


@dataclass(frozen=True)
class Limits:
    """The numbers of nodes that a round may have, and how long it waits for them, in seconds."""

    least: int
    most: int
    join: float = 900
    """From the first node that joins to the start of the round."""
    last_call: float = 30
    """For more nodes, once the least number is there."""
    silence: float = 15
    """A node without a heartbeat for so long counts as gone."""


@dataclass
class Node:
    """A launcher, as the first node knows it."""

    name: str
    """Unique, also among earlier launchers of the same machine."""
    host: str
    number: int | None
    """Its number among the nodes; None where its order does not matter."""
    order: int
    """Of its first arrival."""
    heard: float
    attempt: int = 0
    joined: bool = False
    """Whether it waits for the next round."""
    beat: bytes = b""


@dataclass
class Membership:
    """The nodes of a job."""

    limits: Limits
    first: str
    """The name of the node that decides."""
    nodes: dict[str, Node] = field(default_factory=dict)
    members: set[str] = field(default_factory=set)
    """Names of the nodes of the last round that have not left."""
    running: bool = False
    _since: float | None = None
    """Since when a round is forming."""
    _called: float | None = None
    """Since when it has the least number of nodes."""
    _arrivals: int = 0

    def join(self, name: str, attempt: int, number: int | None, host: str, now: float) -> None:
        """Record that a node waits for the next round."""
        node = self.nodes.get(name)
        if node is None:
            self._arrivals += 1
            node = self.nodes[name] = Node(name, host, number, self._arrivals, now)
        node.attempt, node.joined, node.heard = attempt, True, now

    def leave(self, name: str) -> None:
        """Record that a node has left for good."""
        self.nodes.pop(name, None)
        self.members.discard(name)

    def hear(self, beats: Mapping[str, bytes], now: float) -> None:
        """Record heartbeats, by the names of nodes: one that has changed is a sign of life."""
        for name, beat in beats.items():
            node = self.nodes[name]
            if node.beat != beat:
                node.beat, node.heard = beat, now

    def waiting(self, now: float) -> int:
        """The number of nodes that wait while others have a round, and that another round would take in.

        Once a member of the last round waits, another one forms: the members that still run its ranks are awaited, and
        ranks that have just been stopped for it must not be taken for the end of the job.
        """
        if not self.running:
            return sum(self.nodes[name].joined for name in self._alive(now)) if self.members else 0
        candidates, _ = self._candidates(now)
        new = sum(node.name not in self.members for node in candidates)
        return max(0, min(new, self.limits.most - len(self.members & self._alive(now))))

    def settle(self, now: float) -> list[Node] | None:
        """The nodes of a round that starts now, in the order of their ranks; None where none does.

        Raises:
            NotMetError: the nodes have not come in time.
        """
        alive = self._alive(now)
        joined = {name for name, node in self.nodes.items() if node.joined}
        if self.running:
            if self.members & alive and not self.members & joined:
                return None
            self.running = False
        candidates, taken = self._candidates(now)
        awaited = (self.members & alive) - joined
        if not candidates:
            self._since = self._called = None
            return None
        self._since = now if self._since is None else self._since
        enough = len(candidates) >= self.limits.least
        self._called = (now if self._called is None else self._called) if enough else None
        over = self._called is not None and now - self._called >= self.limits.last_call
        if not awaited and (len(candidates) == self.limits.most or over):
            return self._start(candidates)
        if now - self._since > self.limits.join:
            raise NotMetError(self._missing(candidates, taken, awaited))
        return None

    def _alive(self, now: float) -> set[str]:
        return {name for name, node in self.nodes.items() if now - node.heard <= self.limits.silence}

    def _candidates(self, now: float) -> tuple[list[Node], list[Node]]:
        """The living nodes that wait, each number once and MAX at most, in order; and those whose number is taken."""
        alive = self._alive(now)
        free: list[Node] = []
        taken: list[Node] = []
        numbers = {self.nodes[name].number: name for name in self.members & alive} | {None: ""}
        waiting = (node for name, node in self.nodes.items() if node.joined and name in alive)
        for node in sorted(waiting, key=lambda node: (node.name not in self.members, node.order)):
            holder = numbers.setdefault(node.number, node.name)
            (free if node.number is None or holder == node.name else taken).append(node)
        free.sort(key=lambda node: (node.name != self.first, node.name not in self.members, node.order))
        chosen = free[: self.limits.most]
        return sorted(chosen, key=self._place), taken

    def _place(self, node: Node) -> tuple[float, bool, int]:
        return (float("inf") if node.number is None else node.number, node.name != self.first, node.order)

    def _start(self, candidates: list[Node]) -> list[Node]:
        """A round of these nodes. Silent nodes of the last one are forgotten: they join as new ones."""
        self.running, self._since, self._called = True, None, None
        self.members = {node.name for node in candidates}
        self.nodes = {name: node for name, node in self.nodes.items() if node.joined}
        for node in candidates:
            node.joined = False
        return candidates

    def _missing(self, candidates: list[Node], taken: list[Node], awaited: set[str]) -> str:
        wanted = self.limits.least
        parts = [f"{len(candidates)} of {wanted} nodes came within {self.limits.join:.0f} s"]
        numbers = {node.number for node in candidates}
        if None not in numbers and max(number for number in numbers if number is not None) < wanted:
            parts.append(f"missing: node {_list([str(number) for number in range(wanted) if number not in numbers])}")
        else:
            parts.append(f"they are {_list([node.host for node in candidates])}")
        if awaited:
            hosts = sorted(self.nodes[name].host for name in awaited)
            parts.append(f"not back for a restart: {_list(hosts)}")
        parts += [f"node {node.number} came twice, the second time from {node.host}" for node in taken[:NAMED]]
        return "; ".join(parts)


def _list(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more

"""Launchers meet: many light ones with real sockets, and thousands in virtual time with the costs of real ones."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest import mock

import torch.distributed as dist

from bigtrain.launcher import rendezvous
from bigtrain.launcher.interface import bound_store
from bigtrain.launcher.membership import Limits, Membership, Node
from bigtrain.launcher.rendezvous import Rendezvous

REQUEST_SECONDS = 15e-6
"""CPU of the store for one question: twice what was measured on two shared cores in November 2026 (5 to 8 us)."""
KEY_SECONDS = 5e-6
"""For each key more of a question with several (9.5 ms for 2,000 keys, the client included)."""
ROUND_TRIP = 0.2e-3
INTERVAL = 5.0
"""Seconds between two heartbeats, as in launch/environment.sh."""


class Counting:
    """A connection to a store that counts requests, and keys of requests with several."""

    def __init__(self, store: Any) -> None:
        self.store, self.requests, self.keys = store, Counter[str](), 0
        self.names: set[str] = set()

    def clone(self) -> Counting:
        return Counting(self.store.clone())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.requests[name] += 1
            names = arguments[0] if isinstance(arguments[0], list) else [arguments[0]]
            self.keys += len(names)
            self.names |= set(names)
            return getattr(self.store, name)(*arguments)

        return call


def measure_meeting(nodes: int = 256, restarts: int = 1) -> dict[str, Any]:
    """Have so many launchers meet on loopback and again after restarts: a thread and a connection each, one process.

    Returns:
        seconds and CPU seconds until all had their ranks; requests and different keys of a node, the most and in the
        mean; keys that the first node read and wrote for all.
    """
    listening = bound_store("127.0.0.1", 0, wait_for_workers=False, timeout=timedelta(seconds=60))
    connections = [Counting(listening)]
    for _ in range(nodes - 1):
        client = dist.TCPStore("127.0.0.1", listening.port, is_master=False, wait_for_workers=False)
        connections.append(Counting(client))
    limits = Limits(nodes, nodes, join=120, last_call=1, silence=60)
    made = [
        Rendezvous(store, "scale", limits, interval=INTERVAL, number=number, first=number == 0)
        for number, store in enumerate(connections)
    ]
    for each in made:
        each.address = "127.0.0.1"
    ranks: dict[int, tuple[int, int]] = {}
    began, cpu = time.monotonic(), time.process_time()

    def meet(number: int) -> None:
        for _ in range(1 + restarts):
            given = made[number].next_rendezvous()
            ranks[number] = given.rank, given.world_size
        made[number].num_nodes_waiting()

    unwrapped = lambda name, store: dist.PrefixStore(name, store.store)  # noqa: E731 - in place of a class
    with mock.patch.object(rendezvous, "PrefixStore", unwrapped):
        threads = [threading.Thread(target=meet, args=(number,), daemon=True) for number in range(nodes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(180)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    for each in reversed(made):
        each.shutdown()
    assert ranks == {number: (number, nodes) for number in range(nodes)}
    leader = made[0]._leader
    assert leader is not None
    others = [sum(store.requests.values()) for store in connections[1:]]
    return {
        "nodes": nodes,
        "meetings": 1 + restarts,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "requests_a_node": round(sum(others) / len(others), 1),
        "requests_a_node_most": max(others),
        "keys_a_node_most": max(len(store.names) for store in connections[1:]),
        "questions_of_several_keys_a_node": sum(store.requests["multi_get"] for store in connections[1:]),
        "keys_of_first_node": leader._store.keys,
    }


class Simulation:
    """Launchers in virtual time: the first one's real decisions, and one store that answers one question at a time."""

    def __init__(self, nodes: int, spread: float, seed: int = 1) -> None:
        self._random, self._ticks = random.Random(seed), itertools.count()
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.now, self.free, self.busy, self.longest = 0.0, 0.0, 0.0, 0.0
        self.requests = 0
        self.membership = Membership(Limits(nodes, nodes), "0")
        self.beats: dict[str, bytes] = {}
        self.seats: dict[tuple[str, int], int] = {}
        self.seated: dict[str, float] = {}
        """When each node knew its rank of the newest round."""
        self.rounds: list[float] = []
        self.silent, self._attempts = 0, Counter[str]()
        self._queue: list[tuple[str, int]] = []
        self._read, self._nodes = 0.0, nodes
        for number in range(nodes):
            self._at(self._random.uniform(0, spread), self.join, str(number))
        self._at(0.0, self._turn)

    def _at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._ticks), action, arguments))

    def _ask(self, action: Callable[..., None], *arguments: Any, requests: int = 1, keys: int = 0) -> None:
        """Have the store answer a node, after all that have asked before, and go on then."""
        cost = REQUEST_SECONDS * requests + KEY_SECONDS * keys
        start = max(self.now + ROUND_TRIP / 2, self.free)
        self.free, self.busy, self.requests = start + cost, self.busy + cost, self.requests + requests
        self.longest = max(self.longest, self.free - self.now)
        self._at(self.free + ROUND_TRIP / 2, action, *arguments)

    def run(self, until: float) -> None:
        """Let virtual time pass."""
        while self._events and self._events[0][0] <= until:
            self.now, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)
        self.now = until

    def join(self, name: str) -> None:
        """As Rendezvous.next_rendezvous."""
        self._attempts[name] += 1
        self._ask(self._arrive, name, self._attempts[name], requests=3)  # heartbeat, seat, queue

    def _arrive(self, name: str, attempt: int) -> None:
        self._queue.append((name, attempt))
        if attempt == 1:
            self._at(self.now + INTERVAL * self._random.random(), self._beat, name)
        self._look(name, attempt, rendezvous.SHORTEST_SECONDS)

    def _look(self, name: str, attempt: int, pause: float) -> None:
        def answered() -> None:
            if (name, attempt) in self.seats:
                self.seated[name] = self.now
                self._ask(lambda: self._at(self.now + 1.0, self._wait, name, attempt), requests=6)
            else:
                wait = pause * self._random.uniform(0.5, 1.5)
                longer = min(2 * pause, rendezvous.LONGEST_SECONDS)
                self._at(self.now + wait, self._look, name, attempt, longer)

        self._ask(answered, requests=2)

    def _wait(self, name: str, attempt: int) -> None:
        """As Agent's questions while the ranks run: for nodes that wait, and for a decision; until a restart."""
        if attempt == self._attempts[name]:
            self._ask(lambda: self._at(self.now + 1.0, self._wait, name, attempt), requests=4)

    def _beat(self, name: str) -> None:
        def heard() -> None:
            self.beats[name] = b"%f" % self.now

        self._ask(heard)
        self._at(self.now + INTERVAL, self._beat, name)

    def _turn(self) -> None:
        """As _Leader.turn, whose Python takes this process's CPU seconds."""
        members, began, keys = self.membership, time.process_time(), 0
        arrived, self._queue = self._queue, []
        for name, attempt in arrived:
            members.join(name, attempt, int(name), name, self.now)
        if self.now - self._read >= INTERVAL and members.nodes:
            self._read, keys = self.now, len(members.nodes)
            members.hear({name: self.beats.get(name, b"") for name in members.nodes}, self.now)
            self.silent = max(self.silent, len(members.nodes) - len(members._alive(self.now)))
        started = members.settle(self.now)
        spent = time.process_time() - began

        def decided(nodes: list[Node] | None) -> None:
            if nodes is not None:
                self.rounds.append(self.now)
                self.seats |= {(node.name, node.attempt): rank for rank, node in enumerate(nodes)}
            pause = rendezvous.RUNNING_SECONDS if members.running else rendezvous.FORMING_SECONDS
            self._at(self.now + spent + pause, self._turn)

        keys += len(started or ())
        self._ask(decided, started, requests=2 + len(arrived), keys=keys)


def simulate(nodes: int, spread: float = 20.0, running: float = 30.0) -> dict[str, float]:
    """Have launchers arrive within `spread` seconds, run, and all restart at once after that. Returns what it took."""
    simulation = Simulation(nodes, spread)
    simulation.run(spread + 10)
    met = max(simulation.seated.values()) - simulation.rounds[0] if len(simulation.seated) == nodes else float("inf")
    waited = simulation.rounds[0] - spread if simulation.rounds else float("inf")
    joining, before, asked = simulation.busy, simulation.busy, simulation.requests
    simulation.run(spread + 10 + running)
    load, each = (simulation.busy - before) / running, (simulation.requests - asked) / running / nodes
    simulation.seated.clear()
    restarted = simulation.now
    for name in range(nodes):  # all have seen the decision within a second, and end their ranks in up to three
        simulation._at(restarted + simulation._random.uniform(0, 4), simulation.join, str(name))
    simulation.run(restarted + 20)
    again = max(simulation.seated.values()) - restarted - 4 if len(simulation.seated) == nodes else float("inf")
    return {
        "nodes": nodes,
        "met_after_the_last_came_s": round(waited, 2),
        "all_know_their_ranks_s": round(met, 2),
        "met_again_after_the_last_s": round(again, 2),
        "rounds": len(simulation.rounds),
        "silent_nodes": simulation.silent,
        "store_busy_joining_s": round(joining, 2),
        "store_busy_running": round(load, 3),
        "requests_a_node_a_second": round(each, 2),
        "longest_answer_s": round(simulation.longest, 2),
    }


if __name__ == "__main__":
    for size in (256, 1_024, 2_048, 4_096):
        print(simulate(size))
    print(measure_meeting(256))

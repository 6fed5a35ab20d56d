"""Launchers meet through the store of the first one: real stores on loopback, a thread a node."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousParameters,
    RendezvousTimeoutError,
)

from bigtrain.base import WRONG, BigtrainError
from bigtrain.launcher.rendezvous import BACKEND, Rendezvous, create

TIMES = {"last_call_timeout": 1, "keep_alive_interval": 1, "keep_alive_max_attempt": 3, "read_timeout": 20}


class Nodes:
    """The nodes of a job, and what came of what they did at the same time."""

    def __init__(self, least: int, most: int, job: str = "job", **times: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._limits, self._job = (least, most), job
        self._times = TIMES | {"join_timeout": 60} | times
        self.made: dict[int, Rendezvous] = {}
        self.results: dict[int, Any] = {}

    def create(self, number: int, job: str = "") -> Rendezvous:
        least, most = self._limits
        conf = {"rank": number, "listen": "127.0.0.1", **self._times}
        endpoint = f"127.0.0.1:{self.port}"
        made = create(RendezvousParameters(BACKEND, endpoint, job or self._job, least, most, "127.0.0.1", **conf))
        self.made[number] = made
        return made

    def start(self, numbers: list[int], action: Callable[[int], Any]) -> list[threading.Thread]:
        def act(number: int) -> None:
            try:
                self.results[number] = action(number)
            except Exception as error:
                self.results[number] = error

        threads = [threading.Thread(target=act, args=(number,), daemon=True) for number in numbers]
        for thread in threads:
            thread.start()
        return threads

    def finish(self, threads: list[threading.Thread]) -> dict[int, Any]:
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        return self.results

    def meet(self, numbers: list[int]) -> dict[int, Any]:
        """The rank and number of nodes of each, or the error it met.

        The first node is there before the others, which would else look for it again in a second, after the last call.
        """
        if 0 in numbers and 0 not in self.made:
            with contextlib.suppress(BigtrainError):  # it will be met again
                self.create(0)
        return self.finish(self.start(numbers, self.join))

    def join(self, number: int) -> tuple[int, int]:
        given = (self.made.get(number) or self.create(number)).next_rendezvous()
        given.store.set(f"from-{given.rank}", "x")
        given.store.multi_get([f"from-{rank}" for rank in range(given.world_size)])
        return given.rank, given.world_size


@pytest.fixture
def nodes() -> Iterator[Callable[..., Nodes]]:
    made: list[Nodes] = []

    def make(*limits: Any, **times: Any) -> Nodes:
        made.append(Nodes(*limits, **times))
        return made[-1]

    yield make
    for each in made:
        for node in each.made.values():
            node.shutdown()


def test_all_nodes_get_their_ranks_and_meet_again_after_a_restart(nodes):
    job = nodes(3, 3)
    for _ in range(3):
        assert job.meet([2, 0, 1]) == {0: (0, 3), 1: (1, 3), 2: (2, 3)}


def test_nodes_that_come_before_the_first_one_wait_for_it(nodes):
    job = nodes(2, 2)
    early = job.start([1], job.join)
    time.sleep(1.5)
    job.meet([0])
    assert job.finish(early) == {0: (0, 2), 1: (1, 2)}


def test_every_node_names_those_that_did_not_come(nodes):
    found = nodes(4, 4, join_timeout=2).meet([0, 2])
    for number in (0, 2):
        assert isinstance(found[number], RendezvousTimeoutError)
        assert "2 of 4 nodes came within 2 s; missing: node 1, 3" in str(found[number])


def test_a_late_node_is_noticed_and_taken_in_by_the_next_round(nodes):
    job = nodes(1, 3)
    assert job.meet([0, 1]) == {0: (0, 2), 1: (1, 2)}
    late = job.start([2], job.join)
    end = time.monotonic() + 30
    while not all(job.made[number].num_nodes_waiting() for number in (0, 1)):
        assert time.monotonic() < end
        time.sleep(0.1)
    job.meet([0, 1])
    assert job.finish(late) == {0: (0, 3), 1: (1, 3), 2: (2, 3)}


def test_a_node_that_left_or_died_is_not_in_the_next_round(nodes):
    job = nodes(1, 3)
    job.meet([0, 1, 2])
    job.made[1].leave()
    job.made[2]._ended.set()  # its heartbeats end, as when the machine dies
    job.results.clear()
    assert job.meet([0]) == {0: (0, 1)}


def test_when_a_node_ends_the_job_nobody_joins_it_any_more(nodes):
    job = nodes(1, 3)
    job.meet([0, 1])
    job.made[1].shutdown()
    assert isinstance(job.meet([2])[2], RendezvousClosedError)
    assert job.made[0].is_closed()


def test_a_node_without_a_first_one_says_where_it_looked(nodes):
    job = nodes(2, 2, join_timeout=1)
    found = job.meet([1])[1]
    assert isinstance(found, RendezvousConnectionError) and f"127.0.0.1 port {job.port}" in str(found)


def test_a_node_does_not_join_another_job_at_the_same_port(nodes):
    job = nodes(2, 2, join_timeout=1)
    job.create(0, job="earlier")
    assert "another job meets there, earlier" in str(job.meet([1])[1])


def test_a_taken_port_is_an_error_of_the_first_node(nodes):
    job = nodes(2, 2)
    with contextlib.closing(socket.create_server(("127.0.0.1", job.port))):
        found = job.meet([0])[0]
    assert isinstance(found, BigtrainError) and found.status == WRONG
    assert "cannot listen on 127.0.0.1" in str(found)

"""Where the launchers of a job meet, before each start of the ranks: one node decides, through the store that it holds.

torch keeps one state of all nodes, which each node replaces as a whole (compare and swap). With some hundred nodes
nearly all attempts fail, and from about a thousand no round completes. Here no key is written by two nodes:

    each node      pushes "I join" onto a queue; sets a heartbeat of its own; reads its own seat
    the first one  reads the queue and all heartbeats; decides (membership.py); writes a seat for each node

So a node makes the same few requests at any number of nodes, and the first one as many as there are nodes. A fixed
number of nodes and MIN:MAX meet in the same way. When the first node is lost the others end: it holds the store.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psutil
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from bigtrain.base import BigtrainError
from bigtrain.launcher.interface import bound_store
from bigtrain.launcher.membership import Limits, Membership, Node, NotMetError

BACKEND = "bigtrain"
"""The name for torchrun's --rdzv-backend."""
DEFAULT_PORT = 29400
FORMING_SECONDS, RUNNING_SECONDS = 0.05, 0.2
"""Between two looks of the first node into the queue, while a round forms and while one runs."""
SHORTEST_SECONDS, LONGEST_SECONDS = 0.02, 0.5
"""Between two looks of a node for its seat. They become longer, so that small jobs start at once."""
LOOK_SECONDS = 1.0
"""Between two questions of a node for others that wait."""
CONNECT_SECONDS = 5.0
"""For one attempt to connect."""


class Rendezvous(RendezvousHandler):
    """The part of one node."""

    def __init__(
        self, store: Any, job: str, limits: Limits, *, interval: float, number: int | None, first: bool
    ) -> None:
        """Take part in a job's rendezvous.

        Args:
            store: a connection to the store, for this object alone.
            job: a name that all nodes of the job have in common.
            limits: the numbers of nodes, and how long they wait for each other.
            interval: seconds between two heartbeats.
            number: this node's number; None where its order does not matter.
            first: whether this node holds the store and decides.
        """
        self.limits = limits
        self.address: str | None = None
        """Where the ranks of other nodes reach this one; None for the name of the machine."""
        self._store, self._job, self._number, self._interval = store, job, number, interval
        self._name, self._attempt, self._beats = uuid.uuid4().hex, 0, 0
        self._round = -1
        self._looked, self._waiting = 0.0, 0
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None
        self._leader = _Leader(store.clone(), job, Membership(limits, self._name), interval) if first else None

    @property
    def is_first(self) -> bool:
        """Whether this node holds the store and decides for all."""
        return self._leader is not None

    def get_backend(self) -> str:
        """The name of this kind of rendezvous."""
        return BACKEND

    def get_run_id(self) -> str:
        """The name of the job."""
        return self._job

    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next round, and wait for it.

        Raises:
            RendezvousTimeoutError: nodes have not come; the message names them.
            RendezvousClosedError: the job is over.
            RendezvousConnectionError: the first node does not answer.
        """
        self._attempt += 1
        seat = _seat(self._job, self._name, self._attempt)
        with _connected():
            self._beat()
            self._store.set(seat, "")
            self._push("join", self._attempt, self._number, socket.gethostname())
        if self._beating is None:
            self._beating = threading.Thread(target=self._keep_beating, name="rendezvous-heartbeat", daemon=True)
            self._beating.start()
        given = self._await_seat(seat)
        if "closed" in given:
            raise RendezvousClosedError(given["closed"])
        if "missing" in given:
            raise RendezvousTimeoutError(given["missing"])
        self._round, rank, size = given["round"], given["rank"], given["nodes"]
        self._looked, self._waiting = time.monotonic(), 0
        with _connected():
            store = PrefixStore(f"bigtrain/{self._job}/{self._round}", self._store)
            port = _free_port(self.address) if rank == 0 else None
            meeting = RendezvousStoreInfo.build(rank, store, self.address, port)
        return RendezvousInfo(store, rank, size, meeting)

    def _await_seat(self, seat: str) -> dict[str, Any]:
        """What the first node has decided about this one: it waits as long as that one does."""
        pause = SHORTEST_SECONDS
        while True:
            with _connected():
                if given := self._store.get(seat):
                    self._store.delete_key(seat)
                    answer: dict[str, Any] = json.loads(given)
                    return answer
            time.sleep(pause * random.uniform(0.5, 1.5))  # many nodes ask at different moments
            pause = min(2 * pause, LONGEST_SECONDS)

    def num_nodes_waiting(self) -> int:
        """How many nodes wait that another round would take in; asked for at most once a second."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            with _connected():
                self._waiting = int(self._store.get(_waiting(self._job, self._round)))
            self._looked = now
        return self._waiting

    def is_closed(self) -> bool:
        """Whether the job is over."""
        with _connected():
            return bool(self._store.get(_closed(self._job)) == b"1")

    def set_closed(self) -> None:
        """End the job for all nodes, also for those that come later."""
        with _connected():
            self._push("close")

    def leave(self) -> bool:
        """Leave the job, which goes on without this node."""
        return self._end("leave")

    def shutdown(self) -> bool:
        """Leave the job, and end it for all nodes."""
        return self._end("close")

    def _end(self, message: str) -> bool:
        if not self._ended.is_set():
            self._ended.set()
            with contextlib.suppress(RuntimeError, ValueError):  # the first node is gone
                self._push(message)
            if self._leader is not None:
                self._leader.stop()
        return True

    def _push(self, *message: Any) -> None:
        self._store.queue_push(_queue(self._job), json.dumps([self._name, *message]))

    def _keep_beating(self) -> None:
        """Heartbeats at an interval. Each node starts at a moment of its own, so that they do not come in bursts."""
        pause = self._interval * random.random()
        while not self._ended.wait(pause):
            with contextlib.suppress(RuntimeError, ValueError):  # the thread that starts the ranks will notice
                self._beat()
            pause = self._interval

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(_beat(self._job, self._name), str(self._beats))


class _Leader:
    """The thread of the first node that decides for all. It alone has work that grows with the number of nodes."""

    def __init__(self, store: Any, job: str, membership: Membership, interval: float) -> None:
        self._store, self._job, self._membership, self._interval = store, job, membership, interval
        self._round, self._waiting, self._read = -1, 0, 0.0
        self._refusal: dict[str, str] = {}
        self._refused = 0
        self._ended = threading.Event()
        store.set(_closed(job), "0")
        store.set(_JOB, job)
        self._thread = threading.Thread(target=self._run, name="rendezvous-first-node", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hear what has been sent so far, and end: the store ends with this process."""
        self._ended.set()
        self._thread.join(CONNECT_SECONDS)
        if self._refused:
            time.sleep(2 * LONGEST_SECONDS)  # for them to read why

    def _run(self) -> None:
        last = False
        try:
            while not last:
                last = self._ended.wait(RUNNING_SECONDS if self._membership.running else FORMING_SECONDS)
                self.turn(time.monotonic())
        except Exception as error:  # it must not leave the others waiting
            with contextlib.suppress(RuntimeError, ValueError):
                self._refuse({"missing": f"the first node cannot decide any more: {error!r}"})

    def turn(self, now: float) -> None:
        """Hear all nodes, and decide."""
        members = self._membership
        for _ in range(self._store.queue_len(_queue(self._job))):
            self._hear(now, *json.loads(self._store.queue_pop(_queue(self._job))))
        if now - self._read >= self._interval and members.nodes:
            self._read = now
            names = list(members.nodes)
            beats = self._store.multi_get([_beat(self._job, name) for name in names])
            members.hear(dict(zip(names, beats, strict=True)), now)
        if self._refusal:
            self._refuse(self._refusal)
            return
        try:
            nodes = members.settle(now)
        except NotMetError as error:
            self._refuse({"missing": str(error)})
            return
        if nodes is not None:
            self._seat(nodes)
        elif (waiting := members.waiting(now)) != self._waiting:
            self._waiting = waiting
            self._store.set(_waiting(self._job, self._round), str(waiting))

    def _hear(self, now: float, name: str, message: str, *details: Any) -> None:
        if message == "join":
            attempt, number, host = details
            self._membership.join(name, attempt, number, host, now)
        else:
            self._membership.leave(name)
        if message == "close":
            self._store.set(_closed(self._job), "1")
            self._refusal = {"closed": "one of its nodes has ended it"}

    def _seat(self, nodes: list[Node]) -> None:
        self._round, self._waiting = self._round + 1, 0
        self._store.set(_waiting(self._job, self._round), "0")
        seats = {
            _seat(self._job, node.name, node.attempt): {"round": self._round, "rank": rank, "nodes": len(nodes)}
            for rank, node in enumerate(nodes)
        }
        self._store.multi_set(list(seats), [json.dumps(seat) for seat in seats.values()])

    def _refuse(self, reason: dict[str, str]) -> None:
        """Send away all that wait, and all that come."""
        self._refusal = reason
        waiting = [node for node in self._membership.nodes.values() if node.joined]
        self._refused += len(waiting)
        for node in waiting:
            self._membership.leave(node.name)
            self._store.set(_seat(self._job, node.name, node.attempt), json.dumps(reason))


_JOB = "bigtrain/job"
"""The key with the name of the job that meets at a store."""


def _queue(job: str) -> str:
    return f"bigtrain/{job}/arrivals"


def _seat(job: str, name: str, attempt: int) -> str:
    return f"bigtrain/{job}/seat/{name}/{attempt}"


def _beat(job: str, name: str) -> str:
    return f"bigtrain/{job}/heartbeat/{name}"


def _waiting(job: str, number: int) -> str:
    return f"bigtrain/{job}/waiting/{number}"


def _closed(job: str) -> str:
    return f"bigtrain/{job}/closed"


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Raises RendezvousConnectionError where the store does not answer."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise RendezvousConnectionError(f"the first node, which holds the store, does not answer: {reason}") from error


def create(parameters: RendezvousParameters) -> Rendezvous:
    """Connect to the first node, or be it, by torchrun's parameters.

    Of --rdzv-conf it reads `rank` (this node's number), `is_host` (whether it is the first), `listen` (the address to
    listen on), and join_timeout, last_call_timeout, read_timeout, keep_alive_interval and keep_alive_max_attempt.

    Raises:
        BigtrainError: this node is the first one, and the port is taken here.
        RendezvousConnectionError: the first node did not answer within join_timeout.
        ValueError: a parameter cannot be used.
    """

    def seconds(name: str, default: int) -> int:
        value = parameters.get_as_int(name, default)
        if value is None or value < 0:
            raise ValueError(f"{name} {value}: wanted a number of seconds")
        return value

    interval = max(1, seconds("keep_alive_interval", 5))
    limits = Limits(
        parameters.min_nodes,
        parameters.max_nodes,
        join=seconds("join_timeout", 600),
        last_call=seconds("last_call_timeout", 30),
        silence=interval * max(1, seconds("keep_alive_max_attempt", 3)),
    )
    host, port = parse_rendezvous_endpoint(parameters.endpoint, default_port=DEFAULT_PORT)
    read = timedelta(seconds=max(1, seconds("read_timeout", 60)))
    number = parameters.get_as_int("rank")
    is_first = parameters.get_as_bool("is_host")
    if is_first is None and number is not None:
        is_first = number == 0
    store = None
    if is_first or (is_first is None and _is_here(host)):
        try:
            store = _open(host, port, parameters.get("listen"), read)
        except RuntimeError as error:
            if is_first:
                raise BigtrainError(
                    "the first node cannot open the port at which the nodes meet (rendezvous)",
                    found=str(error).splitlines()[0],
                    wanted=f"a free port: nothing else listens at {host} port {port}",
                    fix=f"ss -ltnp 'sport = {port}' shows who listens there; or give all nodes another port"
                    " (--rdzv-endpoint or --master-port, launch/node.sh --rendezvous)",
                ) from error
    first = store is not None
    if store is None:
        store = _connect(host, port, parameters.run_id, read, limits.join)
    made = Rendezvous(store, parameters.run_id, limits, interval=interval, number=number, first=first)
    made.address = parameters.local_addr
    return made


def register() -> None:
    """Make this kind of rendezvous known to torchrun. The name for it is BACKEND."""
    rendezvous_handler_registry.register(BACKEND, create)


def _open(host: str, port: int, listen: str | None, read: timedelta) -> Any:
    """The store, held by this process. Raises RuntimeError where the port is taken."""
    if listen is not None:
        return bound_store(listen, port, wait_for_workers=False, timeout=read)
    return TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=read)


def _connect(host: str, port: int, job: str, read: timedelta, patience: float) -> Any:
    """A connection to the store of the first node, which may come later, or still have the port from an earlier job."""
    end = time.monotonic() + patience
    while True:
        reason = ""
        try:
            with socket.create_connection((host, port), CONNECT_SECONDS):
                pass  # torch would warn at every attempt, and hear no signal in between
            store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=read)
            found = store.get(_JOB).decode(errors="replace")
            if found == job:
                return store
            reason = f"another job meets there, {found}"
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else repr(error)
        if time.monotonic() > end:
            raise RendezvousConnectionError(
                f"the first node did not answer at {host} port {port} within {patience:.0f} s: {reason}"
            )
        time.sleep(random.uniform(0.5, 1.5))


def _is_here(host: str) -> bool:
    """Whether a name or address is one of this machine."""
    ours = {found.address.partition("%")[0] for each in psutil.net_if_addrs().values() for found in each}
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except OSError:
        return host == socket.gethostname()
    return bool(addresses & ours) or any(ipaddress.ip_address(each.partition("%")[0]).is_loopback for each in addresses)


def _free_port(address: str | None) -> int:
    """A port that is free on the machine of rank 0, for libraries that read MASTER_PORT; ours meet elsewhere."""
    family = socket.AF_INET6 if address and ":" in address else socket.AF_INET
    with socket.create_server((address or "", 0), family=family) as listener:
        port: int = listener.getsockname()[1]
        return port


__all__ = ["BACKEND", "Rendezvous", "create", "register"]

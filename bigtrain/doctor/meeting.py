"""The ranks meet through the launcher's store, which works even where collectives do not.

All messages of the preflight go through this store, with a time limit on every wait. So a broken network, a rank that
never came and a rank that is stuck are findings with a name, and never a hang.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, ClassVar

from pydantic import ConfigDict

from bigtrain.base import (
    STRICT,
    BigtrainError,
    adopt_rank,
    as_record,
    machine_name,
    number_of,
    parse_json,
    store_address,
)

_STORE = "what a rank put into the store of the launcher"
_LATER = 5.0
"""Seconds for which the others still wait for rank 0 after its patience has ended."""
_APART = 0.05
"""Seconds between the ranks that decide in place of rank 0."""
NAMED = 8
"""Hosts that a finding names, at most."""
PATIENCE = 60.0
"""Seconds until the ranks of one host that have not come count as missing."""
HOSTS_THAT_DOUBLE = 128
"""Hosts with which a time limit is twice that of one host."""


def longer(seconds: float, hosts: int) -> float:
    """Return the time limit of a job of this many hosts, given that of one host.

    What all hosts do at once takes longer with each of them: they share a store, a network and the file system with the
    environment. It is 17 times as long for 2,048 hosts. NCCL alone takes 2.5 minutes to start on that many GPUs
    (NVIDIA/nccl#1156), and the imports from a shared file system take 12 (issue 16).
    """
    return seconds * (1 + (hosts - 1) / HOSTS_THAT_DOUBLE)


def _expected_hosts(world_size: int) -> int:
    return -(-world_size // _ranks_a_node())


def _ranks_a_node() -> int:
    return number_of("LOCAL_WORLD_SIZE", 1, 10**6) or 1


@dataclass(frozen=True)
class Attendee:
    """A rank and where it runs."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    rank: int
    host: str
    local_rank: int
    node: int
    """The number of the launcher that started it, because two containers may have the same host name."""
    machine: str = ""
    """The name by which the scheduler knows its host, where that is another one."""


class OwnStore:
    """The store of one process: what it has not set will not come."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        """Set a value."""
        self._values[key] = value

    def compare_set(self, key: str, _expected: str, value: str) -> None:
        """Set a value, unless there is one."""
        self._values.setdefault(key, value)

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        return self._values.keys() >= set(keys)

    def wait(self, keys: list[str], _timeout: timedelta) -> None:
        """Raise RuntimeError where a key is not there."""
        if not self.check(keys):
            raise RuntimeError("no other process could set this key")

    def get(self, key: str) -> str:
        """Return a value. Raises KeyError."""
        return self._values[key]

    def multi_get(self, keys: list[str]) -> list[str]:
        """Return several values. Raises KeyError."""
        return [self._values[key] for key in keys]


class Meeting:
    """The ranks that came. The lowest of them is the leader: it asks, gathers and publishes."""

    def __init__(self, store: Any, me: Attendee, world_size: int, missing: Sequence[int]) -> None:
        """Use `join` instead; it finds out which ranks are missing."""
        self._store = store
        self.me = me
        self.rank, self.world_size = me.rank, world_size
        self.expected_hosts = _expected_hosts(world_size)
        """How many hosts there are if all ranks have come; it sets the time limits."""
        self.missing = list(missing)
        """Ranks that did not come. Every rank knows them."""
        self.present = [rank for rank in range(world_size) if rank not in set(missing)]
        """Ranks that came and have answered since. Only the leader keeps this up to date."""
        self.leads = self.rank == self.present[0]
        self.attendees: dict[int, Attendee] = {self.rank: me}
        """All that came, on the leader. It does not change."""
        self.patience = PATIENCE
        """Seconds for which `join` waited for the ranks."""
        if self.leads:
            values = self._store.multi_get([f"here/{rank}" for rank in self.present])
            self.attendees = {
                rank: as_record(Attendee, parse_json(value, _STORE), f"{_STORE}, rank {rank},")
                for rank, value in zip(self.present, values, strict=True)
            }

    @classmethod
    def alone(cls) -> Meeting:
        """Return the meeting of this process with no other."""
        store, me = OwnStore(), Attendee(0, socket.gethostname(), 0, 0, machine_name())
        store.set("here/0", json.dumps(asdict(me)))
        return cls(store, me, 1, [])

    @classmethod
    def join(cls, patience: float | None = None) -> Meeting:
        """Meet the other ranks of the launcher. Without a launcher this process is the only rank.

        Args:
            patience: seconds until a rank that has not come counts as missing. Default: `PATIENCE`, and longer the more
                hosts there are.

        Raises:
            BigtrainError: the store cannot be reached, or the others went on without this rank.
        """
        found = adopt_rank()
        rank, world_size, launched = found.rank, found.world_size, not found.alone or store_address() is not None
        local_rank, node = found.local_rank or 0, number_of("GROUP_RANK", 0, 10**6) or 0
        me = Attendee(rank, socket.gethostname(), local_rank, node, machine_name())
        patience = patience or longer(PATIENCE, _expected_hosts(world_size))
        end = time.monotonic() + patience
        store = _store(rank, world_size, patience) if launched else OwnStore()
        store.set(f"here/{rank}", json.dumps(asdict(me)))
        everybody = [f"here/{each}" for each in range(world_size)]
        # Where rank 0 does not come, the lowest of the others decides, before the next ones look for the missing too.
        later = _LATER + rank * _APART if rank else 0
        _wait(store, everybody if rank == 0 else ["missing"], end - time.monotonic() + later)
        if not store.check(["missing"]):
            missing = [each for each in range(world_size) if not store.check([f"here/{each}"])]
            store.compare_set("missing", "", json.dumps(missing))  # the first to write decides for all
        missing = as_record(list[int], parse_json(store.get("missing"), _STORE), _STORE)
        if rank in missing:
            raise BigtrainError(
                f"rank {rank} on {me.host} came too late: the others started without it",
                wanted=f"all ranks within {patience:g} s",
                fix="find out what delays the start on this host: its disk, its network, its load",
            )
        meeting = cls(store, me, world_size, missing)
        meeting.patience = patience
        return meeting

    def longer(self, seconds: float) -> float:
        """Return the time limit of something that all hosts do at once, given that of one host."""
        return longer(seconds, self.expected_hosts)

    # From the leader to all

    def publish(self, name: str, value: Any) -> None:
        """Send a value to all ranks, from the leader."""
        self._store.set(f"published/{name}", json.dumps(value))

    def receive(self, name: str, seconds: float) -> Any:
        """Receive what the leader publishes. Raises TimeoutError when it does not within `seconds`."""
        key = f"published/{name}"
        if not _wait(self._store, [key], seconds):
            raise TimeoutError(f"{self.label([self.present[0]])} did not answer within {seconds:.0f} s")
        return parse_json(self._store.get(key), _STORE)

    # From all to the leader

    def post(self, name: str, value: Any) -> None:
        """Send a value to the leader."""
        self._store.set(f"answer/{name}/{self.rank}", json.dumps(value))

    def gather(self, name: str, ranks: Iterable[int], seconds: float) -> dict[int, Any]:
        """Return the values that these ranks send within `seconds`; a rank that sends none is left out."""
        keys = {rank: f"answer/{name}/{rank}" for rank in ranks}
        if not _wait(self._store, list(keys.values()), seconds):
            keys = {rank: key for rank, key in keys.items() if self._store.check([key])}
        values = self._store.multi_get(list(keys.values())) if keys else []
        return {rank: parse_json(value, _STORE) for rank, value in zip(keys, values, strict=True)}

    def mark_lost(self, ranks: Iterable[int]) -> None:
        """Record that these ranks are no longer present."""
        gone = set(ranks)
        self.present = [rank for rank in self.present if rank not in gone]

    # Names

    @cached_property
    def hosts(self) -> dict[tuple[str, int], list[int]]:
        """The ranks of each host name and node, on the leader."""
        found: dict[tuple[str, int], list[int]] = {}
        for rank, each in sorted(self.attendees.items()):
            found.setdefault((each.host, each.node), []).append(rank)
        return found

    def host_of(self, rank: int) -> str:
        """Return the name of a rank's host. For a missing rank it is that of a rank with the same launcher."""
        if rank in self.attendees:
            return self.attendees[rank].host
        near = self._by_node.get(rank // _ranks_a_node())
        return near.host if near else "a host from which no rank came"

    @cached_property
    def _by_node(self) -> dict[int, Attendee]:
        """The first rank of each node that came."""
        return {each.node: each for each in reversed(self.attendees.values())}

    def beside(self, rank: int) -> list[int]:
        """Return the ranks on the host of a rank that came, itself too."""
        return self.hosts[self.attendees[rank].host, self.attendees[rank].node]

    def machines(self, ranks: Iterable[int], *, some: bool = False) -> tuple[str, ...]:
        """Return the machines of ranks, by the names that the scheduler knows; without those that are not known.

        Args:
            ranks: the ranks.
            some: return none where these are the machines of all ranks: it is then no fault of a machine.
        """
        a_node = _ranks_a_node()
        nodes = (self.attendees[rank].node if rank in self.attendees else rank // a_node for rank in ranks)
        known = (self._by_node[node] for node in nodes if node in self._by_node)
        found = tuple(dict.fromkeys(each.machine or each.host for each in known))
        return () if some and len(found) == self._machines else found

    @cached_property
    def _machines(self) -> int:
        return len({each.machine or each.host for each in self._by_node.values()})

    def label(self, ranks: Iterable[int]) -> str:
        """Return ranks with their hosts as text: `rank 3 (node-b)`, `ranks 0-7 (node-a), 9 (node-b)`."""
        by_host: dict[str, list[int]] = {}
        for rank in sorted(ranks):
            by_host.setdefault(self.host_of(rank), []).append(rank)
        several = sum(map(len, by_host.values())) > 1
        parts = [f"{_spans(ranks)} ({host})" for host, ranks in list(by_host.items())[:NAMED]]
        more = f" and {len(by_host) - NAMED:,} more hosts" if len(by_host) > NAMED else ""
        return ("ranks " if several else "rank ") + ", ".join(parts) + more

    def label_hosts(self, ranks: Iterable[int]) -> str:
        """Return the hosts of ranks as text: `node-a, node-b`, or `2,046 hosts (node-a, node-b, ...)`."""
        names = list(dict.fromkeys(map(self.host_of, sorted(ranks))))
        if len(names) <= NAMED:
            return ", ".join(names)
        return f"{len(names):,} hosts ({', '.join(names[:NAMED])}, ...)"

    def leave(self, seconds: float = 5.0) -> None:
        """Wait until all present ranks call this: rank 0 may hold the store that the others still use."""
        self.post("bye", True)
        if self.leads:
            self.gather("bye", self.present, seconds)


def _store(rank: int, world_size: int, patience: float) -> Any:
    """Connect to the launcher's store; where the launcher holds none, to one that rank 0 opens."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    address, port = store_address() or (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
    held = store_address() is not None or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    within, opens = timedelta(seconds=patience), rank == 0 and not held
    try:
        store = TCPStore(address, int(port), world_size, opens, within, wait_for_workers=False, multi_tenant=opens)
        return PrefixStore(f"bigtrain/doctor/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    except (RuntimeError, ValueError) as error:
        raise BigtrainError(
            f"rank {rank} on {socket.gethostname()} cannot reach the store where all ranks meet",
            found=f"{address} port {port}: {str(error).splitlines()[0]}",
            wanted="a connection to the first node",
            fix="check that the name resolves to an address that all nodes reach, and that no firewall is in between",
        ) from None


def _wait(store: Any, keys: list[str], seconds: float) -> bool:
    """Whether all keys have come within `seconds`."""
    try:
        store.wait(keys, timedelta(seconds=max(seconds, 0.001)))
    except RuntimeError:  # torch's DistError too
        return False
    return True


def _spans(ranks: Sequence[int]) -> str:
    """0, 1, 2, 5 as `0-2, 5`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)

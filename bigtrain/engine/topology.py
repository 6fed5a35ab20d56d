"""Who this process is among its peers: rank, world size, device, and the few collectives the program needs.

Neighbouring ranks may share the samples they work on, each matrix cut between them (tensor parallelism) or each
sequence (sequence parallelism); such a group is one in the eyes of the data:

    rank        0  1  2  3  4  5  6  7        tensor_parallel_size 2
    data_rank   0  0  1  1  2  2  3  3
    shard_rank  0  1  0  1  0  1  0  1

torch.distributed is initialised here, with the timeout of the settings, before DeepSpeed sees it: DeepSpeed's own
initialisation waits half an hour for a lost peer and imports mpi4py when a launcher's variables are missing.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

from bigtrain.base import (
    CRASHED,
    BigtrainError,
    Channel,
    LaunchedRank,
    Ranks,
    RankTree,
    adopt_rank,
    check_interfaces,
    raise_open_files,
    require_open_files,
    store_address,
    text_of,
    warn_once,
)
from bigtrain.config import divide_ranks

T = TypeVar("T")

JOINING = timedelta(minutes=10)
"""How long ranks wait for each other at the start, where no launcher of bigtrain has brought them together."""


@dataclass(frozen=True)
class SampleSharing:
    """The ranks that work on the same samples as this one."""

    size: int = 1
    """How many they are."""
    cuts_matrices: bool = False
    """Whether they share each matrix; else each sequence."""
    group: Any = None
    """Their process group; None where this rank is alone."""


@dataclass(frozen=True)
class Topology:
    """One process among `world_size`, with an initialised process group."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    timeout: timedelta
    """What every collective may take."""
    sharing: SampleSharing = SampleSharing()
    channel: Channel = field(default_factory=lambda: _GlooChannel())
    """How objects go from rank to rank."""

    @property
    def data_rank(self) -> int:
        """Which of the `data_size` parts of a global batch this rank works on."""
        return self.rank // self.sharing.size

    @property
    def data_size(self) -> int:
        """Into how many parts a global batch is cut."""
        return self.world_size // self.sharing.size

    @property
    def tensor_size(self) -> int:
        """How many ranks share each matrix."""
        return self.sharing.size if self.sharing.cuts_matrices else 1

    @property
    def sequence_size(self) -> int:
        """How many ranks share each sequence."""
        return 1 if self.sharing.cuts_matrices else self.sharing.size

    @property
    def shard_rank(self) -> int:
        """This rank's number among those that work on the same samples; 0 speaks for all of them."""
        return self.rank % self.sharing.size

    def sum_across_ranks(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all ranks, the same on every rank; whole numbers stay int, exact modulo 2^64.

        Every rank gives values of the same types. Floats are summed in float64.
        """
        whole = all(isinstance(value, int) for value in values)
        tensor = torch.tensor(values, dtype=torch.int64 if whole else torch.float64, device=self.device)
        dist.all_reduce(tensor)
        total: list[float] = tensor.tolist()
        return total

    def reduce(self, value: T, merge: Callable[[T, T], T]) -> T | None:
        """All ranks' values as one, on rank 0; None elsewhere. See `RankTree.reduce`."""
        return self._tree.reduce(value, merge)

    def broadcast(self, value: Any) -> Any:
        """The value that rank 0 gave, on every rank."""
        return self._tree.broadcast(value)

    def scatter(self, values: Sequence[T] | None) -> T:
        """One of the values that rank 0 gave to each rank: the n-th on rank n."""
        return self._tree.scatter(values)

    @property
    def _tree(self) -> RankTree:
        return RankTree(self.rank, self.world_size, self.channel)

    def background(self) -> Ranks:
        """The same ranks over a gloo group of its own, for a thread that works beside the training.

        Messages of two threads over one group would meet in different orders on different ranks. Every rank calls it,
        once.
        """
        return _connected(RankTree(self.rank, self.world_size, _GlooChannel.open(self.timeout)))

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.device.type == "cuda":
            dist.barrier(device_ids=[self.local_rank])
            return
        # Not gloo's own: there a rank may still have to ask the store for a peer when the others are through, and leave
        # with the store. Along the tree each rank has heard its peer before any rank is through.
        _connected(self._tree)

    def shutdown(self) -> None:
        """Leave the process group. Only after a run that ended well: after a failure peers may never answer."""
        if dist.is_initialized():
            dist.destroy_process_group()


@dataclass(frozen=True)
class _GlooChannel:
    """Messages between ranks through host memory: objects have no place on a device that is full of a model."""

    group: Any = None
    """A gloo group of all ranks; None for the default one."""

    @classmethod
    def open(cls, timeout: timedelta) -> _GlooChannel:
        """A channel over a group of its own. Every rank calls it."""
        return cls(dist.new_group(backend="gloo", timeout=timeout))

    def send(self, message: bytes, to: int) -> None:
        dist.send(torch.tensor([len(message)]), dst=to, group=self.group)
        dist.send(torch.frombuffer(bytearray(message), dtype=torch.uint8), dst=to, group=self.group)

    def receive(self, source: int) -> bytes:
        length = torch.empty(1, dtype=torch.int64)
        dist.recv(length, src=source, group=self.group)
        message = torch.empty(int(length), dtype=torch.uint8)
        dist.recv(message, src=source, group=self.group)
        return message.numpy().tobytes()


def _connected(tree: RankTree) -> RankTree:
    """Say a word over each pair of the tree, and return it.

    gloo asks the store for a peer when two ranks first speak. The store ends with its launcher; a save after that, the
    last one of ranks whose launcher was killed, goes only over pairs that exist.
    """
    tree.broadcast(tree.reduce(None, lambda lower, higher: lower))
    return tree


def start(timeout_minutes: float, tensor_parallel_size: int = 1, sequence_parallel_size: int = 1) -> Topology:
    """Join the process group that a launcher describes, or form one of a single process where there is none.

    `bigtrain.base.launched_rank` says which launchers are understood. Takes NCCL and one CUDA device a local rank where
    there are any, else gloo and a fair share of the cores.

    Args:
        timeout_minutes: a collective that takes longer than this ends the job.
        tensor_parallel_size: how many neighbouring ranks share each matrix.
        sequence_parallel_size: or each sequence; one of the two is 1.

    Raises:
        BigtrainError: the variables of the launcher cannot be used, the ranks do not meet, or they do not divide into
            such groups.
    """
    launched = adopt_rank()
    # DeepSpeed looks for all of these and turns to mpi4py without them.
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} if launched.alone else {}
    # gloo would connect every rank to every other one at the start: N^2 connections, of which most are never used.
    defaults = {**alone, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "TORCH_GLOO_LAZY_INIT": "1"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    raise_open_files()
    check_interfaces("GLOO_SOCKET_IFNAME", *(["NCCL_SOCKET_IFNAME"] if torch.cuda.is_available() else []))

    timeout = timedelta(minutes=timeout_minutes)
    store = _meet(launched, timeout)
    launched = _place_on_machine(launched, store)
    local_rank, local_world_size = launched.local_rank or 0, launched.local_world_size or 1
    device = choose_device(local_rank, local_world_size)
    dist.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo",
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
        store=store,
        rank=launched.rank,
        world_size=launched.world_size,
    )
    topology = Topology(
        dist.get_rank(),
        dist.get_world_size(),
        local_rank,
        local_world_size,
        device,
        timeout,
        channel=_GlooChannel() if dist.get_backend() == "gloo" else _GlooChannel.open(timeout),
    )
    return share_samples(topology, tensor_parallel_size, sequence_parallel_size)


def _meet(launched: LaunchedRank, timeout: timedelta) -> Any:
    """The store of all ranks: in memory for one, the launcher's, or one that rank 0 opens."""
    if launched.alone and store_address() is None:
        # A store in memory needs no port, so that two runs on one machine never collide.
        return HashStore()
    try:
        if store_address() is not None:
            return connect(timeout)
        if text_of("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun itself, whose store has the last start's keys
            return PrefixStore(f"bigtrain/start-{text_of('TORCHELASTIC_RESTART_COUNT')}", connect(timeout))
        opens, within = launched.rank == 0, min(timeout, JOINING)
        if opens:
            require_open_files(launched.world_size)
        store = TCPStore(
            str(launched.address), launched.port or 0, launched.world_size, opens, within, False, multi_tenant=opens
        )
        _come_together(store, launched)
        store.set_timeout(timeout)
        return store
    except (RuntimeError, ValueError) as error:
        raise BigtrainError(
            f"rank {launched.rank} of {launched.world_size} on {socket.gethostname()} has not met the others",
            found=f"{_meeting_place(launched)}: {str(error).splitlines()[0]}",
            wanted=f"all {launched.world_size} ranks, and a port that rank 0 can open and all others can reach",
            fix="see whether all ranks were started; set MASTER_ADDR, or MASTER_PORT where that port is taken",
        ).leaving_with(CRASHED) from None


def _come_together(store: Any, launched: LaunchedRank) -> None:
    """Wait for all ranks, and make sure that they are of one job. Raises RuntimeError."""
    job = f"{launched.source}, {launched.world_size} ranks"
    first = store.compare_set("bigtrain/job", "", job).decode()
    if first != job:
        raise RuntimeError(f"another job has this port: {first}; this one: {job}")
    if store.add(f"bigtrain/came/{launched.rank}", 1) > 1:
        raise RuntimeError(f"rank {launched.rank} is there twice")
    # The last to come says so to all: a wait for each of the others would be the square of their number.
    if store.add("bigtrain/came", 1) == launched.world_size:
        store.set("bigtrain/all-came", "")
    try:
        store.wait(["bigtrain/all-came"])
    except RuntimeError:
        within = f"{store.timeout.total_seconds():.0f} s"
        raise RuntimeError(f"{_who_is_missing(store, launched)} did not come within {within}") from None


def _who_is_missing(store: Any, launched: LaunchedRank) -> str:
    """The ranks that have not come, named by rank 0 alone: it asks for each."""
    if launched.rank:
        return f"{launched.world_size - store.add('bigtrain/came', 0)} of {launched.world_size} ranks"
    missing = (rank for rank in range(launched.world_size) if not store.check([f"bigtrain/came/{rank}"]))
    return f"rank(s) {', '.join(map(str, islice(missing, 8)))}"


def _place_on_machine(launched: LaunchedRank, store: Any) -> LaunchedRank:
    """The same with local rank and local world size, which the ranks find out where the launcher does not say it."""
    if launched.local_rank is not None and launched.local_world_size is not None:
        return launched
    host_of, place_of = "bigtrain/host/{}".format, "bigtrain/place/{}".format
    store.set(host_of(launched.rank), socket.gethostname())
    if launched.rank == 0:  # it alone looks at all hosts
        ranks = range(launched.world_size)
        hosts = store.multi_get([host_of(rank) for rank in ranks])
        here, sizes = Counter[bytes](), Counter(hosts)
        places = []
        for host in hosts:
            places.append(f"{here[host]} {sizes[host]}")
            here[host] += 1
        store.multi_set([place_of(rank) for rank in ranks], places)
    number, size = map(int, store.get(place_of(launched.rank)).split())
    local_rank = number if launched.local_rank is None else launched.local_rank
    os.environ |= {"LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(size)}
    return replace(launched, local_rank=local_rank, local_world_size=size)


def _meeting_place(launched: LaunchedRank) -> str:
    host, port = store_address() or (launched.address, launched.port)
    return f"{host} port {port}"


def connect(timeout: timedelta) -> Any:
    """A connection of one's own to the store that the ranks of this start meet in.

    Args:
        timeout: what a question may take.

    Raises:
        KeyError: there is none, as this process was started alone.
        torch.distributed.DistError: nobody answers.
    """
    host, port = store_address() or (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
    return TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=timeout)


def choose_device(local_rank: int, local_world_size: int) -> torch.device:
    """The CUDA device of a local rank, made the current one; where there is none a fair share of the cores."""
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        return device
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(_threads(local_world_size))
    return torch.device("cpu")


def share_samples(topology: Topology, tensor_parallel_size: int, sequence_parallel_size: int) -> Topology:
    """The same ranks, in neighbouring groups that share their samples. Every rank calls it.

    Raises:
        BigtrainError: the ranks do not divide into such groups.
    """
    try:
        size = topology.world_size // divide_ranks(topology.world_size, tensor_parallel_size, sequence_parallel_size)
    except BigtrainError as error:
        raise error.on_all_ranks() from None
    if size == 1:
        return topology
    return replace(topology, sharing=SampleSharing(size, tensor_parallel_size > 1, _neighbours(topology, size)))


def _neighbours(topology: Topology, size: int) -> Any:
    """The process group of this rank and its neighbours, by one call on each rank.

    `dist.new_subgroups` would make every group on every rank; with NCCL each of them is a collective of all ranks.
    """
    if topology.device.type == "cuda":  # one split of the communicator, in which each rank has the colour of its group
        groups = [list(range(first, first + size)) for first in range(0, topology.world_size, size)]
        return dist.split_group(split_ranks=groups, timeout=topology.timeout)
    first = topology.rank - topology.rank % size
    ranks = list(range(first, first + size))
    return dist.new_group(ranks, timeout=topology.timeout, use_local_synchronization=True)


def leave(status: int) -> NoReturn:
    """End a process that has had a process group, without the interpreter's teardown.

    DeepSpeed keeps references to the group, so that threads of gloo live on to the end, where now and then they abort
    a process whose work is done and committed (`terminate called without an active exception`, status -6).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _threads(local_world_size: int) -> int:
    """Threads for one process: what the user asked for, else an equal share of the cores.

    torchrun sets OMP_NUM_THREADS=1 itself where it is unset, which would leave cores idle; that value is
    taken for torchrun's.
    """
    text = (text_of("OMP_NUM_THREADS") or "0").partition(",")[0].strip()  # OpenMP takes a list, one for each level
    asked = int(text) if text.isascii() and text.isdecimal() and len(text) < 5 else 0
    if not asked and text != "0":
        warn_once(f"OMP_NUM_THREADS={text} is ignored: it is not a number of threads")
    by_torchrun = asked == 1 and "TORCHELASTIC_RUN_ID" in os.environ
    if asked and not by_torchrun:
        return asked
    return max(1, len(os.sched_getaffinity(0)) // local_world_size)

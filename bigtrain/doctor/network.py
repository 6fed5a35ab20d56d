"""Checks that the ranks reach each other, and how fast: collectives, and links between neighbours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from bigtrain.doctor.check import CheckContext, Measured
from bigtrain.doctor.finding import CheckFinding
from bigtrain.engine import Topology, start
from bigtrain.model import count_learning_parameters

BUCKET = 50_000_000
"""Elements that the engine reduces at a time; see bigtrain/engine/deepspeed_config.py."""
WITHOUT_MODEL = 1 << 24
"""Elements that are reduced where no configuration is given."""
LINK_BYTES = 1 << 22
"""Bytes that two neighbours exchange."""
SECONDS_A_SIZE = 2.0
"""Seconds that the rounds of one collective may take, roughly."""
SLOW_LINK = 0.5
"""The share of the median bandwidth of its kind below which a link is slow."""
SLOWER_THAN_BEFORE = 0.3
"""The share by which a collective may be slower than in earlier preflights."""
HOSTS_TO_CONNECT = 4
"""Hosts among which an all-to-all is measured although the run may not need it."""
JOIN_SECONDS = 15.0
"""Seconds until the process group of one host must be there; of more hosts it takes longer."""


def measure_network(context: CheckContext) -> dict[str, Any]:
    """Measure latency and bandwidth of the collectives of training, at the sizes that this model has."""
    topology = start(context.meeting.longer(JOIN_SECONDS) / 60)
    settings = context.settings
    elements = WITHOUT_MODEL
    if settings is not None:
        elements = min(count_learning_parameters(settings.model, settings.adapter), BUCKET)
    found: dict[str, Any] = {"backend": dist.get_backend(), "world_size": topology.world_size}
    latency = _seconds(topology, lambda: dist.all_reduce(torch.ones(1, device=topology.device)), rounds=20)
    found["latency_seconds"] = latency
    tensor = torch.full((_affordable(topology, elements),), 1.0, device=topology.device)
    dist.all_reduce(tensor)
    if not bool((tensor == topology.world_size).all()):
        found["wrong"] = f"{float(tensor.max())} or {float(tensor.min())} as the sum of {topology.world_size} ones"
    found["bytes"] = tensor.nbytes
    found["all_reduce_seconds"] = _seconds(topology, lambda: dist.all_reduce(tensor.fill_(1.0)))
    if needs_all_to_all(context):
        found |= _all_to_all(topology, tensor.numel())
    found["links"] = _links(topology)
    return found


def needs_all_to_all(context: CheckContext) -> bool:
    """Whether to measure an all-to-all: where the optimizer exchanges matrices, and on few hosts.

    The first one connects each rank with each. With NCCL it took 10 minutes at 240 GPUs (NVIDIA/nccl-tests#78), and
    3 GB of memory of 8 GPUs (NVIDIA/nccl#1685).
    """
    if context.settings is not None and context.settings.optimizer.name == "muon":
        return True
    return context.meeting.expected_hosts <= HOSTS_TO_CONNECT


def _all_to_all(topology: Topology, elements: int) -> dict[str, Any]:
    part = max(1, min(elements, WITHOUT_MODEL) // topology.world_size)
    sent = torch.full((topology.world_size * part,), float(topology.rank), device=topology.device)
    received = torch.empty_like(sent)
    seconds = _seconds(topology, lambda: dist.all_to_all_single(received, sent))
    found: dict[str, Any] = {"exchange_bytes": sent.nbytes, "all_to_all_seconds": seconds}
    expected = torch.arange(topology.world_size, device=topology.device).repeat_interleave(part)
    if not torch.equal(received, expected.to(received.dtype)):
        found["wrong"] = "wrong parts of an all-to-all"
    return found


def _affordable(topology: Topology, elements: int) -> int:
    """This number of elements, or fewer where a slow network needs it; the same on every rank."""
    probe = torch.ones(min(elements, 1 << 18), device=topology.device)
    seconds = _seconds(topology, lambda: dist.all_reduce(probe), rounds=3)
    slowest = torch.tensor([seconds], dtype=torch.float64, device=topology.device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return max(probe.numel(), min(elements, int(probe.numel() * SECONDS_A_SIZE / 4 / slowest.item())))


def _seconds(topology: Topology, work: Callable[[], object], rounds: int = 3) -> float:
    """The median seconds of a few rounds, after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        _synchronize(topology.device)
        started = time.perf_counter()
        work()
        _synchronize(topology.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _links(topology: Topology) -> dict[str, float]:
    """The seconds that this rank and the next take to exchange LINK_BYTES, by the number of the next.

    The pairs that start with an even rank come first, then the others, so that every link is measured alone.
    """
    rank, size = topology.rank, topology.world_size
    found: dict[str, float] = {}
    here = torch.zeros(LINK_BYTES // 4, device=topology.device)
    there = torch.empty_like(here)
    for phase in range(min(2, size - 1)):
        lower = rank if rank % 2 == phase else rank - 1
        partner = lower + 1 if rank == lower else lower
        topology.barrier()
        if lower < 0 or lower + 1 >= size:
            continue

        def exchange(partner: int = partner) -> None:
            pair = [dist.P2POp(dist.isend, here, partner), dist.P2POp(dist.irecv, there, partner)]
            for work in dist.batch_isend_irecv(pair):
                work.wait()

        seconds = _seconds(topology, exchange)
        if rank == lower:
            found[str(partner)] = seconds
    return found


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def assess_network(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Check that results are right, that no link is slow, and that nothing is slower than before."""
    first = measured[min(measured)]
    size = first["world_size"]
    if size == 1:
        yield CheckFinding("network", "ok", "one rank, which needs no network")
        return
    wrong = {rank: each["wrong"] for rank, each in measured.items() if "wrong" in each}
    if wrong:
        yield CheckFinding(
            "network",
            "failed",
            f"{context.meeting.label(wrong)} got {next(iter(wrong.values()))}",
            "the values that were sent",
            "leave these hosts out, and have their network cards and GPUs tested",
        )
    yield from _slow_links(measured, context)
    reduced = max(each["all_reduce_seconds"] for each in measured.values())
    latency = max(each["latency_seconds"] for each in measured.values())
    # The bus bandwidth, which each rank's link carries, as nccl-tests counts it.
    rates = {"all-reduce": 2 * (size - 1) / size * first["bytes"] / reduced}
    if exchanged := max(each.get("all_to_all_seconds", 0.0) for each in measured.values()):
        rates["all-to-all"] = (size - 1) / size * first["exchange_bytes"] / exchanged
    shape = f"{size} ranks on {len(context.meeting.hosts)} host(s)"
    for what, rate in rates.items():
        quantity = f"{what} {first['backend']} {first['bytes']} bytes, {shape}"
        before = context.history.expected(quantity)
        if before and rate < (1 - SLOWER_THAN_BEFORE) * before:
            yield CheckFinding(
                "network",
                "warning",
                f"{what} is slower than it was: {_rate(rate)}, {1 - rate / before:.0%} less than the "
                f"{_rate(before)} of earlier preflights",
                f"within {SLOWER_THAN_BEFORE:.0%}",
                "find out which hosts or links have changed; if the change is intended, remove RUN/doctor.json",
            )
        context.history.add(quantity, rate)
    context.measured["network"] = {
        "backend": first["backend"],
        "world_size": first["world_size"],
        "bytes": first["bytes"],
        "latency_seconds": latency,
        "all_reduce_seconds": reduced,
    } | {f"{what.replace('-', '_')}_bytes_per_second": round(rate) for what, rate in rates.items()}
    of = " of the gradients" if context.settings else ""
    exchange = f"all-to-all {_rate(rates['all-to-all'])}, " if "all-to-all" in rates else ""
    yield CheckFinding(
        "network",
        "ok",
        f"{first['backend']}: all-reduce of {first['bytes'] / 2**20:.1f} MiB{of} in {reduced * 1e3:.3g} ms "
        f"({_rate(rates['all-reduce'])}), {exchange}latency {latency * 1e6:.0f} us",
    )


def _slow_links(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    kinds: dict[bool, dict[tuple[int, int], float]] = {}
    for rank, each in measured.items():
        for other, seconds in each["links"].items():
            within = context.meeting.host_of(rank) == context.meeting.host_of(int(other))
            kinds.setdefault(within, {})[rank, int(other)] = 2 * LINK_BYTES / seconds
    for within, links in kinds.items():
        usual = statistics.median(links.values())
        for pair, rate in links.items():
            if len(links) > 2 and rate < SLOW_LINK * usual:
                yield CheckFinding(
                    "network",
                    "warning",
                    f"the link between {context.meeting.label(pair)} is slow: {_rate(rate)}, the median of its kind "
                    f"{_rate(usual)}",
                    f"over {SLOW_LINK:.0%} of it",
                    "look at the topology inside the host (nvidia-smi topo -m)"
                    if within
                    else "look at the cable, port and driver of these two hosts' network cards",
                )


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.3g} GB/s"

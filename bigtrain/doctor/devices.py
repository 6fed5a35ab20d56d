"""Checks of the ranks' devices: one for each rank, all of a kind, and how fast they multiply matrices."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import torch

from bigtrain.base import gibibytes, number_of
from bigtrain.doctor.check import CheckContext, Measured
from bigtrain.doctor.datasheet import measure_memory_speed, name_of
from bigtrain.doctor.finding import CheckFinding
from bigtrain.model import lacking_for_cpu_kernels
from bigtrain.observe import MATMUL_SIZES, datasheet_flops, kind_of, measure_matmul_peak

SLOWER_WARNS = {"cuda": 0.1, "cpu": 0.2}
"""The share by which a device may be slower than the median of its kind. On a CPU other processes may be busy."""
SLOWER_FAILS = {"cuda": 0.3}
"""The share from which a slow GPU is a failure, as all others wait for it. A CPU never is: it may just be busy."""
SLOWER_THAN_BEFORE = 0.2
"""The share by which a device may be slower than in earlier preflights."""
OF_DATASHEET = 0.5
"""The share of the datasheet's figure that a healthy GPU exceeds in a large matrix product."""
FREE_MEMORY = 0.9
"""The share of a GPU's memory that is free where no other process uses it."""


def measure_device(context: CheckContext) -> dict[str, Any]:
    """Return name, identity and memory of this rank's device."""
    device = context.device
    launched = number_of("LOCAL_WORLD_SIZE", 1, 10**6) or 1
    if device.type != "cuda":
        return {
            "type": "cpu",
            "name": f"{len(os.sched_getaffinity(0))} cores",
            "threads": torch.get_num_threads(),
            "local_ranks": launched,
            "kernels_want": lacking_for_cpu_kernels(),
        }
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "type": "cuda",
        "name": properties.name,
        "uuid": str(getattr(properties, "uuid", device.index)),
        "free": free,
        "total": total,
        "devices": torch.cuda.device_count(),
        "local_ranks": launched,
    }


def assess_devices(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Check that all devices are of one kind, one for each rank, with none idle and none used by others."""
    label = context.meeting.label
    kinds = Counter(f"{each['name']}" for each in measured.values())
    usual, _ = kinds.most_common(1)[0]
    outliers = [rank for rank, each in measured.items() if each["name"] != usual]
    if outliers:
        theirs = ", ".join(sorted({measured[rank]["name"] for rank in outliers}))
        yield CheckFinding(
            "devices",
            "warning",
            f"{label(outliers)} computes on {theirs}, the others on {usual}",
            "the same device for every rank: a step takes as long as on the slowest",
            "leave these hosts out, or accept their speed for all",
        )
    types = {each["type"] for each in measured.values()}
    if len(types) > 1:
        without = [rank for rank, each in measured.items() if each["type"] == "cpu"]
        yield CheckFinding(
            "devices",
            "failed",
            f"{label(without)} sees no GPU, the others do",
            "GPUs on all hosts, or on none",
            "run nvidia-smi there: is the driver loaded, is CUDA_VISIBLE_DEVICES empty?",
            context.meeting.machines(without, some=True),
        )
    yield from _shared(measured, context)
    idle: dict[tuple[int, int], list[int]] = {}
    for ranks in context.meeting.hosts.values():
        here = [measured[rank] for rank in ranks if rank in measured]
        if here and here[0].get("devices", 0) > here[0]["local_ranks"]:
            idle.setdefault((here[0]["local_ranks"], here[0]["devices"]), []).extend(ranks)
    for (used, there), ranks in idle.items():
        yield CheckFinding(
            "devices",
            "warning",
            f"{label(ranks)} uses {used} of the {there} GPUs there",
            "one rank for each GPU",
            f"start {there} processes a node (--nproc-per-node)",
        )
    for want in {each.get("kernels_want") for each in measured.values()} - {None}:
        without = [rank for rank, each in measured.items() if each.get("kernels_want") == want]
        yield CheckFinding(
            "devices",
            "warning",
            f"{label(without)} runs without bigtrain's kernels for this CPU; PyTorch's take two to five times as long",
            want,
            "install a compiler (Debian: apt-get install g++), or set CXX; the kernels are compiled at the next start",
        )
    taken = [rank for rank, each in measured.items() if each.get("free", 1) < FREE_MEMORY * each.get("total", 1)]
    if taken:
        least = min(measured[rank]["free"] for rank in taken)
        yield CheckFinding(
            "devices",
            "warning",
            f"{label(taken)}: another process uses the GPU's memory, {gibibytes(least)} are free",
            f"{FREE_MEMORY:.0%} of it free",
            "run nvidia-smi there, and end processes that an earlier job has left",
        )
    threads = Counter(each["threads"] for each in measured.values() if "threads" in each)
    each_with = f", {next(iter(threads))} thread(s) each" if len(threads) == 1 else ""
    yield CheckFinding("devices", "ok", f"{len(measured)} rank(s) on {', '.join(kinds)}{each_with}")


def _shared(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    for ranks in context.meeting.hosts.values():
        users: dict[str, list[int]] = {}
        for rank in ranks:
            if rank in measured and "uuid" in measured[rank]:
                users.setdefault(measured[rank]["uuid"], []).append(rank)
        for sharing in users.values():
            if len(sharing) > 1:
                yield CheckFinding(
                    "devices",
                    "failed",
                    f"{context.meeting.label(sharing)} use the same GPU",
                    "one GPU for each rank",
                    "start as many processes a node as it has GPUs (--nproc-per-node), and check CUDA_VISIBLE_DEVICES",
                )


def measure_matmul(context: CheckContext) -> dict[str, Any]:
    """Return the FLOP/s of a large matrix product, which all ranks compute at the same time."""
    rate = measure_matmul_peak(context.device, context.dtype, sizes=MATMUL_SIZES[context.device.type][:1])
    name = torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else None
    launched = number_of("LOCAL_WORLD_SIZE", 1, 10**6) or 1
    memory = measure_memory_speed(context.device, launched) if context.measures_memory else {}
    return {
        **memory,
        "flops": rate,
        "type": context.device.type,
        "name": name,
        "kind": kind_of(context.dtype),
        "load": round(psutil.getloadavg()[0] / (os.cpu_count() or 1), 2),
    }


def assess_matmul(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Compare each device with the others of its kind, with its datasheet, and with earlier preflights."""
    label, kept = context.meeting.label, {}
    slow: dict[int, str] = {}
    for name in {each["name"] for each in measured.values()}:
        ranks = [rank for rank, each in measured.items() if each["name"] == name]
        usual = statistics.median(measured[rank]["flops"] for rank in ranks)
        for rank in ranks:
            mine, kind = measured[rank]["flops"], measured[rank]["type"]
            if mine < (1 - SLOWER_WARNS[kind]) * usual:
                fails = mine < (1 - SLOWER_FAILS.get(kind, 1)) * usual
                slow[rank] = "compared with the others"
                load = f"; the host's load is {measured[rank]['load']:.1f} a core" if kind == "cpu" else ""
                yield CheckFinding(
                    "matmul",
                    "failed" if fails else "warning",
                    f"{label([rank])} is slow: {_tera(mine)} in a matrix product, {1 - mine / usual:.0%} less than the "
                    f"median of its kind, {_tera(usual)}{load}",
                    f"within {SLOWER_WARNS[kind]:.0%}: every step waits for the slowest",
                    "look at temperature, clocks and power (nvidia-smi -q -d PERFORMANCE,CLOCK)"
                    if kind == "cuda"
                    else "look which other processes run on this host (top), or leave it out",
                    context.meeting.machines([rank]),
                )
        sheet = datasheet_flops(name, measured[ranks[0]]["kind"])
        if sheet and usual < OF_DATASHEET * sheet:
            yield CheckFinding(
                "matmul",
                "warning",
                f"{name}: {_tera(usual)}, {usual / sheet:.0%} of the datasheet's {_tera(sheet)}",
                f"over {OF_DATASHEET:.0%}",
                "look at the power limit and the clocks (nvidia-smi -q -d POWER,CLOCK), and at the build of PyTorch",
            )
    for rank, each in measured.items():
        attendee = context.meeting.attendees[rank]
        quantity = f"matmul {each['kind']} {attendee.host} {attendee.local_rank}"
        before = context.history.expected(quantity)
        if before and each["flops"] < (1 - SLOWER_THAN_BEFORE) * before and rank not in slow:
            yield CheckFinding(
                "matmul",
                "warning",
                f"{label([rank])} is slower than it was: {_tera(each['flops'])} in a matrix product, "
                f"{1 - each['flops'] / before:.0%} less than the {_tera(before)} of earlier preflights",
                f"within {SLOWER_THAN_BEFORE:.0%}",
                "find out what has changed on this host; if the change is intended, remove RUN/doctor.json",
            )
        context.history.add(quantity, each["flops"])
        kept[rank] = round(each["flops"])
    context.measured["matmul_flops"] = kept
    if context.measures_memory:
        slowest = min(measured.values(), key=lambda each: float(each["flops"]))
        context.measured["device"] = {**slowest, "name": name_of(context.device)}
    rates = sorted(kept.values())
    spread = _tera(rates[0]) if len(rates) == 1 else f"{_tera(rates[0])} to {_tera(rates[-1])} a rank"
    yield CheckFinding("matmul", "ok", f"{spread}, {measured[min(measured)]['kind']}")


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.3g} TFLOP/s"

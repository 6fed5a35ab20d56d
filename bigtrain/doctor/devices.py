"""What the ranks compute on, whether it is one for each, and how quickly it multiplies."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import torch

from bigtrain.base.format import gibibytes
from bigtrain.doctor.check import Measured, Patient
from bigtrain.doctor.finding import Finding
from bigtrain.model.cpu import cpu_kernels
from bigtrain.observe.peak_flops import MATMUL_SIZES, datasheet_flops, kind_of, measure_matmul_peak

SLOWER_WARNS = {"cuda": 0.1, "cpu": 0.2}
"""By how much a device may be slower than the median of its like. On a CPU others may be at work."""
SLOWER_FAILS = {"cuda": 0.3}
"""A GPU that is so much slower makes all others wait. A CPU is not refused: it may just be busy."""
SLOWER_THAN_BEFORE = 0.2
OF_DATASHEET = 0.5
"""The share of the datasheet's figure that a healthy GPU passes in a large matrix product."""
FREE_MEMORY = 0.9


def measure_device(patient: Patient) -> dict[str, Any]:
    """Name, identity and memory of this rank's device."""
    device = patient.device
    launched = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type != "cuda":
        return {
            "type": "cpu",
            "name": f"{len(os.sched_getaffinity(0))} cores",
            "threads": torch.get_num_threads(),
            "local_ranks": launched,
            "kernels_want": cpu_kernels.obstacle() if cpu_kernels.is_for_this_cpu() else None,
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


def judge_devices(measured: Measured, patient: Patient) -> Iterator[Finding]:
    """All of one kind, one a rank, none left idle, none in use by others."""
    who = patient.meeting.who
    kinds = Counter(f"{each['name']}" for each in measured.values())
    usual, _ = kinds.most_common(1)[0]
    odd = [rank for rank, each in measured.items() if each["name"] != usual]
    if odd:
        theirs = ", ".join(sorted({measured[rank]["name"] for rank in odd}))
        yield Finding(
            "devices",
            "warning",
            f"{who(odd)} computes on {theirs}, the others on {usual}",
            "the same device for every rank: a step takes as long as the slowest",
            "leave these hosts out, or accept their speed for all",
        )
    types = {each["type"] for each in measured.values()}
    if len(types) > 1:
        without = [rank for rank, each in measured.items() if each["type"] == "cpu"]
        yield Finding(
            "devices",
            "failed",
            f"{who(without)} sees no GPU, the others do",
            "GPUs on all hosts, or on none",
            "run nvidia-smi there: is the driver loaded, is CUDA_VISIBLE_DEVICES empty?",
        )
    yield from _shared(measured, patient)
    for ranks in patient.meeting.hosts.values():
        here = [measured[rank] for rank in ranks if rank in measured]
        if here and here[0].get("devices", 0) > here[0]["local_ranks"]:
            yield Finding(
                "devices",
                "warning",
                f"{who(ranks)} uses {here[0]['local_ranks']} of the {here[0]['devices']} GPUs there",
                "a rank for each",
                f"start {here[0]['devices']} processes a node (--nproc-per-node)",
            )
    for want in {each.get("kernels_want") for each in measured.values()} - {None}:
        without = [rank for rank, each in measured.items() if each.get("kernels_want") == want]
        yield Finding(
            "devices",
            "warning",
            f"{who(without)} has no kernels of its own for this CPU, PyTorch's take two to five times as long",
            want,
            "install a compiler (Debian: apt-get install g++), or set CXX; they are compiled at the next start",
        )
    taken = [rank for rank, each in measured.items() if each.get("free", 1) < FREE_MEMORY * each.get("total", 1)]
    if taken:
        least = min(measured[rank]["free"] for rank in taken)
        yield Finding(
            "devices",
            "warning",
            f"{who(taken)}: another process uses the GPU's memory, {gibibytes(least)} are free",
            f"{FREE_MEMORY:.0%} of it free",
            "see nvidia-smi there, and end what was left behind",
        )
    threads = Counter(each["threads"] for each in measured.values() if "threads" in each)
    each_with = f", {next(iter(threads))} thread(s) each" if len(threads) == 1 else ""
    yield Finding("devices", "ok", f"{len(measured)} rank(s) on {', '.join(kinds)}{each_with}")


def _shared(measured: Measured, patient: Patient) -> Iterator[Finding]:
    for ranks in patient.meeting.hosts.values():
        users: dict[str, list[int]] = {}
        for rank in ranks:
            if rank in measured and "uuid" in measured[rank]:
                users.setdefault(measured[rank]["uuid"], []).append(rank)
        for together in users.values():
            if len(together) > 1:
                yield Finding(
                    "devices",
                    "failed",
                    f"{patient.meeting.who(together)} use the same GPU",
                    "a GPU for each rank",
                    "start as many processes a node as it has GPUs (--nproc-per-node), and check CUDA_VISIBLE_DEVICES",
                )


def measure_matmul(patient: Patient) -> dict[str, Any]:
    """FLOP/s of a large matrix product, while all ranks do the same."""
    rate = measure_matmul_peak(patient.device, patient.dtype, sizes=MATMUL_SIZES[patient.device.type][:1])
    name = torch.cuda.get_device_name(patient.device) if patient.device.type == "cuda" else None
    return {
        "flops": rate,
        "type": patient.device.type,
        "name": name,
        "kind": kind_of(patient.dtype),
        "load": round(psutil.getloadavg()[0] / (os.cpu_count() or 1), 2),
    }


def judge_matmul(measured: Measured, patient: Patient) -> Iterator[Finding]:
    """Against the other ranks with such a device, the datasheet, and what the same device reached before."""
    who, kept = patient.meeting.who, {}
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
                yield Finding(
                    "matmul",
                    "failed" if fails else "warning",
                    f"{who([rank])} is slow: {_tera(mine)} in a matrix product, {1 - mine / usual:.0%} less than the "
                    f"median of its like, {_tera(usual)}{load}",
                    f"within {SLOWER_WARNS[kind]:.0%}: every step waits for the slowest",
                    "look at temperature, clocks and power (nvidia-smi -q -d PERFORMANCE,CLOCK)"
                    if kind == "cuda"
                    else "see what else is at work on this host (top), or leave it out",
                )
        sheet = datasheet_flops(name, measured[ranks[0]]["kind"])
        if sheet and usual < OF_DATASHEET * sheet:
            yield Finding(
                "matmul",
                "warning",
                f"{name}: {_tera(usual)}, {usual / sheet:.0%} of the datasheet's {_tera(sheet)}",
                f"over {OF_DATASHEET:.0%}",
                "look at the power limit and the clocks (nvidia-smi -q -d POWER,CLOCK), and at the build of PyTorch",
            )
    for rank, each in measured.items():
        attendee = patient.meeting.attendees[rank]
        quantity = f"matmul {each['kind']} {attendee.host} {attendee.local_rank}"
        before = patient.history.expected(quantity)
        if before and each["flops"] < (1 - SLOWER_THAN_BEFORE) * before and rank not in slow:
            yield Finding(
                "matmul",
                "warning",
                f"{who([rank])} is slower than it was: {_tera(each['flops'])} in a matrix product, "
                f"{1 - each['flops'] / before:.0%} less than the {_tera(before)} of earlier examinations",
                f"within {SLOWER_THAN_BEFORE:.0%}",
                "find out what has changed on this host, or remove doctor.json from the run if it is meant to be so",
            )
        patient.history.add(quantity, each["flops"])
        kept[rank] = round(each["flops"])
    patient.measured["matmul_flops"] = kept
    rates = sorted(kept.values())
    spread = _tera(rates[0]) if len(rates) == 1 else f"{_tera(rates[0])} to {_tera(rates[-1])} a rank"
    yield Finding("matmul", "ok", f"{spread}, {measured[min(measured)]['kind']}")


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.3g} TFLOP/s"

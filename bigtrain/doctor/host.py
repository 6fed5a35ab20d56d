"""Checks of each host: its limits of open files, pinned memory and shared memory, and the health of its GPUs."""

from __future__ import annotations

import csv
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigtrain.base import gibibytes, open_files_wanted
from bigtrain.doctor.check import CheckContext, Measured
from bigtrain.doctor.finding import CheckFinding

FILES_AT_LEAST = 1024
SHARED_MEMORY = {"cuda": 1 << 30, "cpu": 1 << 26}
"""Free bytes of /dev/shm, at least."""
GPU_FIELDS = (
    "index",
    "name",
    "persistence_mode",
    "ecc.errors.uncorrected.volatile.total",
    "retired_pages.pending",
    "remapped_rows.pending",
    "remapped_rows.failure",
    "clocks_throttle_reasons.hw_slowdown",
    "temperature.gpu",
)


def measure_limits(context: CheckContext) -> dict[str, int | bool]:
    """Return the limits of this process, and the free space in /dev/shm."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found = {"files_hard": hard, "locked": locked, "infiniband": Path("/dev/infiniband").exists()}
    shared = Path("/dev/shm")
    if shared.is_dir():
        usage = shutil.disk_usage(shared)
        found |= {"shared_free": usage.free, "shared_total": usage.total}
    return found


def assess_limits(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Check the limits against the number of ranks: files for their connections, pinned memory, /dev/shm."""
    label, world = context.meeting.label, context.ranks
    wanted = max(FILES_AT_LEAST, open_files_wanted(world, len(context.meeting.hosts)))
    infinite = resource.RLIM_INFINITY
    # The launcher and the ranks raise the soft limit to the hard one.
    few = [rank for rank, each in measured.items() if each["files_hard"] != infinite and each["files_hard"] < wanted]
    if few:
        yield CheckFinding(
            "limits",
            "warning",
            f"{label(few)} may have {min(measured[rank]['files_hard'] for rank in few):,} files open",
            f"{wanted:,} on the host of rank 0, for {world:,} ranks: every connection is an open file",
            "raise the hard limit: nofile in /etc/security/limits.conf, LimitNOFILE in a service, --ulimit in Docker",
        )
    pinned = [rank for rank, each in measured.items() if each["infiniband"] and each["locked"] != infinite]
    if pinned:
        yield CheckFinding(
            "limits",
            "warning",
            f"{label(pinned)} has InfiniBand and may pin {measured[pinned[0]]['locked'] / 2**20:.0f} MiB",
            "unlimited: NCCL registers its buffers with the network card",
            "ulimit -l unlimited in the script that starts the ranks (--ulimit memlock=-1 in Docker)",
        )
    least = SHARED_MEMORY[context.device_type]
    tight = [rank for rank, each in measured.items() if each.get("shared_free", 0) < least]
    if tight:
        free = min(measured[rank].get("shared_free", 0) for rank in tight)
        yield CheckFinding(
            "limits",
            "warning",
            f"{label(tight)}: {gibibytes(free)} free in /dev/shm",
            f"{gibibytes(least)}, through which the ranks of one host exchange data",
            "--shm-size=8g in Docker, an emptyDir with medium Memory in Kubernetes, or remove old files there",
        )
    shared = min(each.get("shared_free", 0) for each in measured.values())
    files = [each["files_hard"] for each in measured.values() if each["files_hard"] != infinite]
    may_open = f"{min(files):,}" if files else "any number of"
    yield CheckFinding("limits", "ok", f"{may_open} open files, {gibibytes(shared)} in /dev/shm")


def measure_gpus(context: CheckContext) -> dict[str, Any] | None:
    """Return what nvidia-smi and the kernel report of this host's GPUs; None where there is no nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=8)
    except subprocess.TimeoutExpired:
        return {"error": "nvidia-smi does not answer: a GPU has fallen off the bus, or the driver hangs"}
    if done.returncode:
        return {"error": (done.stdout + done.stderr).strip()[-300:]}
    rows = [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines()) if row]
    return {"gpus": [dict(zip(GPU_FIELDS, row, strict=False)) for row in rows], "xid": _xid_errors()}


def _xid_errors() -> list[str]:
    """The driver's errors in the kernel's log, as far as this user may read it."""
    try:
        log = subprocess.run(["dmesg"], capture_output=True, text=True, timeout=5, errors="replace").stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in log.splitlines() if "NVRM: Xid" in line][-3:]


def assess_gpus(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Check that the GPUs have no uncorrected memory errors and no slowdown, and that the driver stays loaded."""
    meeting, count = context.meeting, 0
    unanswered: dict[str, list[int]] = {}
    problems: dict[tuple[str, Any, str], list[int]] = {}
    for rank, each in measured.items():
        if each is None:
            continue
        if "error" in each:
            unanswered.setdefault(each["error"], []).append(rank)
            continue
        for problem in _gpu_problems(each):
            problems.setdefault(problem, []).append(rank)
        count += len(each["gpus"])
    for error, ranks in unanswered.items():
        text = f"{meeting.label_hosts(ranks)}: {error}"
        yield CheckFinding("gpus", "warning", text, "an answer from nvidia-smi", "look at dmesg on that host")
    for (found, status, fix), ranks in problems.items():
        text = f"{meeting.label_hosts(ranks)}: {found}"
        yield CheckFinding("gpus", status, text, "healthy GPUs", fix, meeting.machines(ranks))
    healthy = f"{count} GPU(s) without memory errors, slowdown or XID messages"
    yield CheckFinding("gpus", "ok", healthy if count else "no nvidia-smi on these hosts: nothing to check")


def _gpu_problems(each: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    for gpu in each["gpus"]:
        name = f"GPU {gpu['index']} ({gpu['name']})"
        errors = gpu["ecc.errors.uncorrected.volatile.total"]
        if errors.isdigit() and int(errors):
            yield (
                f"{name} has {errors} uncorrected memory errors since it was last reset",
                "failed",
                "drain the node and reset the GPU (nvidia-smi -r); replace it if the errors return",
            )
        pending = [key for key in GPU_FIELDS[4:7] if gpu.get(key, "").lower() in ("yes", "1")]
        if pending:
            yield (
                f"{name}: {', '.join(pending)}",
                "failed" if "remapped_rows.failure" in pending else "warning",
                "reset the GPU (nvidia-smi -r) so that bad memory is mapped out; replace it where remapping failed",
            )
        if gpu.get("clocks_throttle_reasons.hw_slowdown", "").lower() == "active":
            yield (
                f"{name} is slowed down by the hardware at {gpu.get('temperature.gpu')} degrees",
                "warning",
                "look at cooling and power",
            )
    not_persistent = [gpu["index"] for gpu in each["gpus"] if gpu["persistence_mode"].lower() == "disabled"]
    if not_persistent:
        yield (
            f"persistence mode is off for GPU {', '.join(not_persistent)}: the driver is loaded again at each start",
            "warning",
            "nvidia-smi -pm 1, or the service nvidia-persistenced",
        )
    if each["xid"]:
        yield (
            f"the driver has logged an error: {each['xid'][-1]}",
            "warning",
            "look up the number in NVIDIA's list of XID errors",
        )

"""Out of memory as an error that helps: how much was there, how much was needed, which settings to change."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
import torch.distributed as dist

from bigtrain import estimate
from bigtrain.base import BigtrainError, gibibytes
from bigtrain.config import Settings
from bigtrain.engine import Topology

OTHERS_SECONDS = 3.0
"""Seconds for which a rank without memory waits for the others to fail too, so that one message is enough."""
_FAILED_RANKS = "bigtrain/out-of-memory"
"""The key of a counter in the store."""
_CPU_MESSAGES = (
    "can't allocate memory",
    "bad_alloc",
    "Cannot allocate memory",
    "could not create a primitive",  # oneDNN, where it has no memory for the code that it makes
)
_REQUESTED = re.compile(r"(?:allocate (\d+) bytes|Tried to allocate ([\d.]+) ([KMGT]iB))")


@contextmanager
def enough_memory(settings: Settings, topology: Topology, what: str) -> Iterator[None]:
    """Turn an allocation that fails inside into the user's error.

    The other ranks may have failed as well, or may wait in a collective that this one never joins. In the first case
    rank 0 reports for all. In the second each rank without memory reports, and the launcher ends the rest.

    Args:
        settings: of the run; they decide what can be changed.
        topology: the ranks.
        what: what did not fit, as the subject of a sentence.

    Raises:
        BigtrainError: the device, or the host, had no memory left.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as failure:
        if not _is_out_of_memory(failure):
            raise
        error = out_of_memory(settings, topology, what, failure)
        raise (error.on_all_ranks() if _all_ranks_failed(topology) else error) from failure


def out_of_memory(settings: Settings, topology: Topology, what: str, failure: BaseException) -> BigtrainError:
    """Make the error for one failed allocation."""
    return BigtrainError(
        f"{what} does not fit into memory",
        found=_found(topology.device),
        wanted=_wanted(failure),
        fix="try these in order, until it fits:\n" + "\n".join(f"    {each}" for each in remedies(settings, topology)),
    )


def remedies(settings: Settings, topology: Topology) -> list[str]:
    """List the settings that would save memory here, cheapest first, without those that are set already."""
    advice = estimate.remedies(
        settings,
        data_size=topology.data_size,
        devices=topology.world_size,
        on_gpu=topology.device.type == "cuda",
    )
    return [*map(str, advice), "more ranks, or devices with more memory"]


def _is_out_of_memory(failure: BaseException) -> bool:
    if isinstance(failure, torch.OutOfMemoryError | MemoryError):
        return True
    return any(message in str(failure) for message in _CPU_MESSAGES)


def _found(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        peak, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.memory_reserved(device)
        return (
            f"{gibibytes(total)} on {torch.cuda.get_device_name(device)}, {gibibytes(free)} of it free; this process "
            f"used {gibibytes(peak)} at its peak and holds {gibibytes(reserved)}"
        )
    used, available = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    return f"{gibibytes(available)} available to this host; this process uses {gibibytes(used)}" + _address_space()


def _address_space() -> str:
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return "" if limit == resource.RLIM_INFINITY else f" and may address {gibibytes(limit)} (ulimit -v)"


def _wanted(failure: BaseException) -> str:
    requested = _REQUESTED.search(str(failure))
    if requested is None:
        return "more"
    return f"{gibibytes(int(requested[1]))} more" if requested[1] else f"{requested[2]} {requested[3]} more"


def _all_ranks_failed(topology: Topology) -> bool:
    """Whether every rank failed, as they count in the process group's store, which needs no collective."""
    if topology.world_size == 1:
        return True
    store = dist.distributed_c10d._get_default_store()
    failed, end = store.add(_FAILED_RANKS, 1), time.monotonic() + OTHERS_SECONDS
    while failed < topology.world_size and time.monotonic() < end:
        time.sleep(0.05)
        failed = store.add(_FAILED_RANKS, 0)
    return bool(failed >= topology.world_size)

"""The checks of one process that take two seconds together, since they need neither PyTorch nor other processes."""

from __future__ import annotations

from bigtrain.doctor import agreement, disks, host, names, shape
from bigtrain.doctor.check import Check

FAST_CHECKS: dict[str, Check] = {
    "configuration": Check(
        "all ranks have the same effective settings",
        agreement.measure_configuration,
        agreement.assess_configuration,
        shared=True,
        needs_settings=True,
    ),
    "batch": Check(
        "the global batch divides over the ranks",
        shape.measure_batch,
        shape.assess_batch,
        takes_part="leader",
        needs_settings=True,
    ),
    "limits": Check(
        "limits of open files, pinned memory and /dev/shm", host.measure_limits, host.assess_limits, takes_part="hosts"
    ),
    "names": Check(
        "hosts reach each other by name",
        names.measure_names,
        names.assess_names,
        takes_part="hosts",
    ),
    "disks": Check(
        "the disks have room for the checkpoints that are kept; the speed of writing past the page cache",
        disks.measure_disks,
        disks.assess_disks,
        takes_part="hosts",
        seconds=25,
        needs_settings=True,
    ),
}

"""All checks, in their order."""

from __future__ import annotations

from bigtrain.doctor import agreement, clocks, devices, disks, host, network, services, shape
from bigtrain.doctor.check import Check
from bigtrain.doctor.fast_checks import FAST_CHECKS

CHECKS: dict[str, Check] = {
    "versions": Check(
        "all ranks have the same Python, PyTorch, DeepSpeed, source of bigtrain, CUDA, NCCL and driver",
        agreement.measure_versions,
        agreement.assess_versions,
        shared=True,
    ),
    "environment": Check(
        "variables that configure libraries (NCCL_*, GLOO_*, OMP_*, ...) are the same on all ranks",
        agreement.measure_environment,
        agreement.assess_environment,
    ),
    "configuration": FAST_CHECKS["configuration"],
    "batch": FAST_CHECKS["batch"],
    "devices": Check(
        "each rank has a device of the same kind, which no other process uses",
        devices.measure_device,
        devices.assess_devices,
        seconds=20,
    ),
    "gpus": Check(
        "the GPUs have no memory errors, slowdown or XID messages, and persistence mode is on",
        host.measure_gpus,
        host.assess_gpus,
        takes_part="hosts",
        seconds=15,
    ),
    "limits": FAST_CHECKS["limits"],
    "memory": Check(
        "weights, gradients, optimizer state and the image of a save fit into memory",
        shape.measure_memory,
        shape.assess_memory,
        needs_settings=True,
    ),
    "names": FAST_CHECKS["names"],
    "disks": FAST_CHECKS["disks"],
    "sharing": Check(
        "all hosts see the same run directory and checkpoint.dir",
        disks.measure_sharing,
        disks.assess_sharing,
        takes_part="hosts",
        seconds=20,
        shared=True,
        needs_settings=True,
    ),
    "data": Check(
        "tokenizer and datasets are as they were built, and a sample of their blocks is intact",
        services.measure_data,
        services.assess_data,
        takes_part="hosts",
        seconds=20,
        shared=True,
        needs_settings=True,
    ),
    "tracker": Check(
        "W&B's server answers",
        services.measure_tracker,
        services.assess_tracker,
        takes_part="leader",
        needs_settings=True,
    ),
    "clocks": Check(
        "the hosts' clocks agree",
        clocks.measure_clock,
        clocks.assess_clocks,
        takes_part="hosts",
        seconds=clocks.TOTAL_SECONDS + 2,
        shared=True,
        collective=True,
    ),
    "matmul": Check(
        "the speed of a matrix product: against the other ranks, the datasheet and earlier preflights",
        devices.measure_matmul,
        devices.assess_matmul,
        seconds=30,
    ),
    "network": Check(
        "bandwidth and latency of all-reduce, and of all-to-all where the run needs it; links between neighbours",
        network.measure_network,
        network.assess_network,
        seconds=30,
        shared=True,
        collective=True,
    ),
}

"""What the settings need of the machine; what they need of each other is checked when they are read."""

from __future__ import annotations

import torch

from bigtrain.base import BigtrainError
from bigtrain.config import Settings, require_whole_partitions
from bigtrain.engine.topology import Topology


def check_machine(settings: Settings, topology: Topology) -> None:
    """Make sure that these ranks on these devices can do what the settings ask for.

    Raises:
        BigtrainError: the same on every rank.
    """
    engine, device = settings.engine, topology.device
    for key in ("zero_quantized_weights", "zero_quantized_gradients"):
        if getattr(engine, key) and device.type != "cuda":
            raise BigtrainError(
                f"engine.{key} needs DeepSpeed's CUDA kernels",
                found=f"training on {device.type}",
                wanted="a CUDA device",
                fix=f"remove engine.{key}",
            ).on_all_ranks()
    if engine.float8 and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        major, minor = torch.cuda.get_device_capability(device)
        raise BigtrainError(
            "engine.float8 needs a GPU with 8-bit matrix products",
            found=f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}",
            wanted="8.9 or later (Ada, Hopper, Blackwell)",
            fix="set engine.float8 to false",
        ).on_all_ranks()
    try:
        require_whole_partitions(topology.data_size, engine.zero_hpz_partition_size)
    except BigtrainError as error:
        raise error.on_all_ranks() from None

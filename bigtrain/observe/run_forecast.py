"""What the planner expects of a run on the devices that it has, for comparison with what is measured."""

from __future__ import annotations

import torch

from bigtrain.config import Settings
from bigtrain.estimate import Forecast, forecast, interconnect, known_device, layout_of, workload_of
from bigtrain.observe.peak_flops import cpu_name


def forecast_here(settings: Settings, on: torch.device, *, ranks: int, ranks_per_node: int) -> Forecast | None:
    """The forecast of a run on its own devices; None where their datasheet is not known.

    Args:
        settings: of the run.
        on: a device of it. A CPU has a datasheet where BIGTRAIN_DATASHEETS names one.
        ranks: of the run.
        ranks_per_node: of them on a node.

    Raises:
        BigtrainError: the file that BIGTRAIN_DATASHEETS names holds no datasheets.
    """
    kind = known_device(torch.cuda.get_device_name(on) if on.type == "cuda" else cpu_name())
    if kind is None:
        return None
    layout = layout_of(settings, ranks)
    return forecast(workload_of(settings), layout, kind, interconnect(kind, node_size=ranks_per_node))


def peak_memory(on: torch.device) -> int | None:
    """The most bytes that were allocated on a CUDA device so far; None elsewhere."""
    return torch.cuda.max_memory_allocated(on) if on.type == "cuda" else None

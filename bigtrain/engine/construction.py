"""How a model comes into being on the ranks: whole on each, or, at ZeRO stage 3, in parts and never whole on any.

with construction(settings, topology):
    model = build(...)                              # parameters without meaningful values
for name, parameter in whole_parameters(model):     # one at a time, whole while it is looked at
    fill(name, parameter)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bigtrain.config import Settings
from bigtrain.engine.deepspeed_config import deepspeed_config
from bigtrain.engine.deepspeed_import import import_deepspeed
from bigtrain.engine.precision import COMPUTE_DTYPES
from bigtrain.engine.topology import Topology


@contextmanager
def construction(settings: Settings, topology: Topology) -> Iterator[None]:
    """Inside, modules are made where and how the engine wants them; the values of their parameters mean nothing yet."""
    if settings.engine.zero_stage < 3:
        with torch.device(topology.device), _left_empty():
            yield
        return
    deepspeed = import_deepspeed()
    partitioned = deepspeed.zero.Init(
        config_dict_or_path=deepspeed_config(settings), dtype=COMPUTE_DTYPES[settings.engine.precision]
    )
    with partitioned, _left_empty():
        yield


def whole_parameters(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter by name, whole while it is looked at; what is written into it stays.

    Every rank has to go through all of them, and to write the same.
    """
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):  # a rank holds a part of it
            with import_deepspeed().zero.GatheredParameters([parameter], modifier_rank=0):
                yield name, parameter
        else:
            yield name, parameter


@contextmanager
def _left_empty() -> Iterator[None]:
    """Layers draw random weights when they are made, which nobody looks at."""
    drawing = nn.Linear.reset_parameters
    nn.Linear.reset_parameters = lambda self: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Linear.reset_parameters = drawing  # type: ignore[method-assign]

"""What of a device's memory is weights, gradients, master weights and moments, by DeepSpeed's own tensors.

Storages are counted, each once: where the master weights are the weights themselves (ZeRO stage 0), they are weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from bigtrain.checkpoint import MASTER, Fragment

_WHERE_GRADIENTS_ARE = (
    "fp32_groups_gradients_flat",  # stage 1 in bf16
    "averaged_gradients",  # stages 1 to 3
    "all_grad_tensors",  # stage 2
    "accumulated_grads_in_cpu",  # stages 1 and 2 with offload
    "grad_partitions_flat_buffer",  # stage 3
)


def held_bytes(model: nn.Module, wrapper: Any, fragments: Iterable[Fragment], device: torch.device) -> dict[str, int]:
    """Bytes on this device by what they are for; gradients are there after a backward pass and before the step."""
    pieces = list(fragments)
    kinds = {
        "weights": _weights(model),
        "master weights": (piece.data for piece in pieces if piece.kind == MASTER),
        "optimizer moments": (piece.data for piece in pieces if piece.kind != MASTER),
        "gradients": _gradients(model, wrapper),
    }
    seen: set[int] = set()
    found = {}
    for kind, tensors in kinds.items():
        found[kind] = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if tensor.device.type == device.type and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                found[kind] += storage.nbytes()
    return found


def _weights(model: nn.Module) -> Iterator[torch.Tensor]:
    for parameter in model.parameters():
        yield parameter.data
        if hasattr(parameter, "ds_tensor"):  # stage 3: this rank's part
            yield parameter.ds_tensor.data


def _gradients(model: nn.Module, wrapper: Any) -> Iterator[torch.Tensor]:
    for parameter in model.parameters():
        yield from _tensors([parameter.grad, getattr(parameter, "grad_accum", None)])
    for name in _WHERE_GRADIENTS_ARE:
        yield from _tensors(getattr(wrapper, name, None))


def _tensors(nested: Any) -> Iterator[torch.Tensor]:
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, dict | list | tuple):
        for each in nested.values() if isinstance(nested, dict) else nested:
            yield from _tensors(each)

"""What a forward pass leaves in memory, counted in two ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bigtrain.observe.live_storages import LiveStorages


def kept_after(forward: Callable[[], Tensor], known: Iterable[Tensor]) -> list[tuple[int, str]]:
    """What is alive after a forward pass beside `known` and its result: bytes and origin of each storage."""
    with LiveStorages(known) as storages:
        loss = forward()
    return storages.alive(loss)


def saved_bytes(forward: Callable[[], Tensor], known: Iterable[Tensor]) -> int:
    """Bytes of the storages that autograd saves in a forward pass beside `known`, each once, by its own hooks."""
    held = {each.untyped_storage().data_ptr() for each in known}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in held:
            found[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    size = sum(tensor.untyped_storage().nbytes() for tensor in found.values())
    del loss
    return size

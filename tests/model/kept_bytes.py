"""What a forward pass leaves in memory: the storages that are alive behind its loss, by what made them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveStorages(TorchDispatchMode):
    """Remembers every storage that operators write, without keeping it alive."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Args:
        known: tensors that were there before, such as parameters and inputs; they do not count.
        """
        super().__init__()
        self._known = {each.untyped_storage()._cdata for each in known}
        self._made: dict[int, tuple[StorageWeakRef, int, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                found = self._made.get(storage._cdata)
                if storage._cdata not in self._known and (found is None or found[0].expired()):
                    label = f"{func} {tuple(each.shape)} {str(each.dtype).removeprefix('torch.')}"
                    self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes(), label)
        return result

    def alive(self, besides: Tensor) -> list[tuple[int, str]]:
        """Bytes and origin of each storage that is still alive, besides that of the result."""
        own = besides.untyped_storage()._cdata
        found = ((key, *made) for key, made in self._made.items() if key != own)
        return [(size, label) for _, reference, size, label in found if not reference.expired()]


def kept_after(forward: Callable[[], Tensor], known: Iterable[Tensor]) -> list[tuple[int, str]]:
    """What is alive after a forward pass beside `known` and its result: bytes and origin of each storage."""
    with LiveStorages(known) as storages:
        loss = forward()
    return storages.alive(besides=loss)


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

"""What a forward pass leaves in memory, on any device: the storages that are alive beside its result.

with LiveStorages(known) as storages:      known: parameters and inputs, which do not count
    loss = forward()
storages.alive(loss)               bytes and origin of what waits for the backward pass
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveStorages(TorchDispatchMode):
    """Remembers every storage that operators make, without keeping it alive."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Args:
        known: tensors that were there before; they do not count.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {each.untyped_storage()._cdata for each in known}
        self._made: dict[int, tuple[StorageWeakRef, int, str, str]] = {}
        self.part = ""
        """What is being computed: whatever is made from here on counts to it."""
        self.peaks: dict[str, int] = {}
        """Most bytes alive at once of what a named part has made."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and note the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                found = self._made.get(storage._cdata)
                if storage._cdata not in self._known and (found is None or _is_gone(found[0])):
                    label = f"{func} {tuple(each.shape)} {str(each.dtype).removeprefix('torch.')}"
                    self._made[storage._cdata] = (_weak(storage), storage.nbytes(), label, self.part)
        if self.part:
            alive = sum(size for size, _, part in self._alive() if part == self.part)
            self.peaks[self.part] = max(alive, self.peaks.get(self.part, 0))
        return result

    def alive(self, *besides: Tensor) -> list[tuple[int, str]]:
        """Bytes and origin of each storage that is still alive.

        Args:
            besides: tensors whose storages do not count, such as the result.
        """
        return [(size, label) for size, label, _ in self._alive(besides)]

    def bytes_of(self, part: str, besides: Iterable[Tensor] = ()) -> int:
        """Bytes that are still alive of what a part has made, besides the storages of some tensors."""
        return sum(size for size, _, of in self._alive(besides) if of == part)

    def _alive(self, besides: Iterable[Tensor] = ()) -> Iterator[tuple[int, str, str]]:
        left_out = {each.untyped_storage()._cdata for each in besides}
        for key, (reference, size, label, part) in self._made.items():
            if key not in left_out and not _is_gone(reference):
                yield size, label, part


def _weak(storage: UntypedStorage) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def _is_gone(reference: StorageWeakRef) -> bool:
    gone: bool = reference.expired()  # type: ignore[no-untyped-call]
    return gone

"""What a training step's forward pass leaves for its backward pass, measured: of the blocks, and of the head.

A CPU's allocator counts nothing, so there the storages that operators make are watched. A GPU's allocator counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.model import LanguageModel
from bigtrain.observe import LiveStorages

ACTIVATIONS, HEAD = "activations kept", "logits and loss"
"""The two kinds: what waits for the backward pass, and what the head needs beside that while it computes the loss. On a
GPU of the second what stays."""


class KeptMemory:
    """Bytes by kind, after `watching` a forward pass."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    @contextmanager
    def watching(self, model: LanguageModel, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Around a forward pass of a model on these inputs."""
        if model.device.type == "cuda":
            yield from self._by_allocator(model)
        else:
            yield from self._by_storages(model, inputs)

    def _by_allocator(self, model: LanguageModel) -> Iterator[None]:
        start, of_head, entered = torch.cuda.memory_allocated(model.device), 0, 0

        def enter(*_: Any) -> None:
            nonlocal entered
            entered = torch.cuda.memory_allocated(model.device)

        def leave(*_: Any) -> None:
            nonlocal of_head
            of_head += torch.cuda.memory_allocated(model.device) - entered

        with _around(model.head, enter, leave):
            yield
        whole = torch.cuda.memory_allocated(model.device) - start
        self.bytes = {ACTIVATIONS: whole - of_head, HEAD: of_head}

    def _by_storages(self, model: LanguageModel, inputs: Mapping[str, Any]) -> Iterator[None]:
        known = [*model.parameters(), *model.buffers(), *(each for each in inputs.values() if isinstance(each, Tensor))]
        with LiveStorages(known) as storages:

            def enter(*_: Any) -> None:
                storages.part = HEAD

            def leave(*_: Any) -> None:
                storages.part = ""

            with _around(model.head, enter, leave):
                yield
        gathered = [each.data for each in model.parameters()]  # stage 3 may still hold whole weights
        self.bytes = {ACTIVATIONS: storages.bytes_of("", besides=gathered), HEAD: storages.peaks.get(HEAD, 0)}


@contextmanager
def _around(module: nn.Module, enter: Any, leave: Any) -> Iterator[None]:
    hooks = module.register_forward_pre_hook(enter), module.register_forward_hook(leave)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

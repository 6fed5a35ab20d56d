"""How many labels are the likeliest token at their position, counted while a model computes their loss."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.base import IGNORE_INDEX

_ROWS = 4096
"""Positions whose logits are in memory together."""


class RightLabels:
    """Within its `with` block, whatever comes to a head with labels is counted.

    It is a sum over labels, so counts of batches and of ranks add up.
    """

    def __init__(self, head: nn.Module) -> None:
        """Args:
        head: of a model: called with states it gives logits, and with states and labels a loss.
        """
        self._head = head
        self.number = 0
        """Labels that are the likeliest choice; of equally likely ones, the one with the lowest id counts."""
        self.labels = 0
        """All labels."""

    def __enter__(self) -> RightLabels:
        self._hook = self._head.register_forward_pre_hook(self._count)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self._hook.remove()

    @torch.no_grad()
    def _count(self, head: nn.Module, arguments: tuple[Any, ...]) -> None:
        if len(arguments) < 2 or arguments[1] is None:  # logits alone, as those that are made here
            return
        hidden: Tensor = arguments[0].flatten(0, -2)
        labels: Tensor = arguments[1].flatten()
        places = (labels != IGNORE_INDEX).nonzero().squeeze(1)
        self.labels += len(places)
        for part in places.split(_ROWS):  # type: ignore[no-untyped-call]
            self.number += int((head(hidden[part]).argmax(-1) == labels[part]).sum())

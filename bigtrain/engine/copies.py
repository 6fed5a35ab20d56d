"""Which weights a rank has that should be those of other ranks, or of its own master, bit for bit.

stage 0     the weights are the masters, a copy on every rank
stage 1, 2  every rank computes with a copy of all weights, which each update makes again from the masters' parts
stage 3     a rank has its part alone, and whole what is too small to be worth cutting
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from bigtrain.engine.fragments import OwnedRange


class Part(NamedTuple):
    """Elements [offset, offset + length) of a flattened parameter, twice on one rank."""

    name: str
    offset: int
    weight: torch.Tensor
    """1-D, as the model computes with it."""
    master: torch.Tensor
    """1-D, float32."""

    @property
    def expected(self) -> torch.Tensor:
        """What the weight should be."""
        return self.master.to(self.weight.device, self.weight.dtype)


def copies(model: nn.Module, stage: int) -> dict[str, torch.Tensor]:
    """The weights that are whole on this rank, by name."""
    named: Any = model.named_parameters()
    if stage < 3:
        return {name: parameter.detach() for name, parameter in named}
    return {
        name: parameter.detach()
        for name, parameter in named
        if parameter.ds_persist and parameter.numel() == parameter.ds_numel
    }


def parts(model: nn.Module, ranges: Sequence[OwnedRange], stage: int) -> list[Part]:
    """Of every range that this rank owns; none where the weights are the masters themselves."""
    if stage == 0:
        return []
    parameters: dict[str, Any] = dict(model.named_parameters())
    found = []
    for each in ranges:
        parameter = parameters[each.name]
        if stage == 3:
            weight = parameter.ds_tensor.detach().view(-1)[: each.length]
        else:
            weight = parameter.detach().view(-1)[each.offset : each.offset + each.length]
        master = each.owner.detach().view(-1)[each.start : each.start + each.length]
        found.append(Part(each.name, each.offset, weight, master))
    return found

"""Losses that are learned from and not reported: a router's two, those of multi-token prediction and of a teacher.

    learned = loss + sum of coefficient * auxiliary loss        its gradient
    reported = loss                                             its value

Each is a sum over tokens, as the loss is, so that the objective does not depend on how a batch is spread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from bigtrain.config import ModelSettings
from bigtrain.model.layers.router import RouterReport


class Counted(NamedTuple):
    """What forward passes have found beside their loss, on this rank."""

    losses: dict[str, float]
    """Sums over tokens by the names that metrics have; over all routers, and the mean over modules of multi-token
    prediction."""
    loads: Tensor
    """[routers, E] int64: labelled tokens that chose each expert."""


class Auxiliary:
    """Joins auxiliary losses to the loss, and counts until somebody asks."""

    def __init__(self, settings: ModelSettings) -> None:
        self._coefficients = {
            "router_aux_loss": settings.router_aux_loss_coef,
            "router_z_loss": settings.router_z_loss_coef,
            "mtp_loss": settings.mtp_loss_coef,
        }
        self._losses: dict[str, Tensor] = {}
        self._loads: list[Tensor] = []

    def set_coefficients(self, coefficients: Mapping[str, float]) -> None:
        """Say what further losses, by name, are multiplied by."""
        self._coefficients |= coefficients

    def join(
        self,
        loss: Tensor,
        reports: Sequence[RouterReport],
        ahead: Sequence[Tensor],
        further: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """The loss with all of their gradients.

        Args:
            loss: the value.
            reports: of the routers, in the order of the model's.
            ahead: the summed losses of the modules of multi-token prediction.
            further: other summed losses, by the names of `set_coefficients`.
        """
        losses = dict(further)
        if reports:
            losses["router_aux_loss"] = torch.stack([report.balance_loss for report in reports]).sum()
            losses["router_z_loss"] = torch.stack([report.z_loss for report in reports]).sum()
            self._loads.append(torch.stack([report.loads for report in reports]))
        if ahead:
            losses["mtp_loss"] = torch.stack(tuple(ahead)).mean()
        for name, value in losses.items():
            extra = self._coefficients[name] * value
            loss = loss + (extra - extra.detach())
            self._losses[name] = self._losses.get(name, 0.0) + value.detach().double()
        return loss

    def take(self) -> Counted:
        """What was counted since this was asked last."""
        losses = {name: value.item() for name, value in self._losses.items()}
        loads = torch.stack(self._loads).sum(dim=0).cpu() if self._loads else torch.zeros(0, 0, dtype=torch.int64)
        self._losses, self._loads = {}, []
        return Counted(losses, loads)

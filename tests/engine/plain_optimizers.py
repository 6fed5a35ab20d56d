"""The yardstick for the optimizers: PyTorch's own over whole parameters, and Lion as the paper has it, in float64."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch

from bigtrain.config.settings import OptimizerSettings


class PlainLion:
    """Chen et al. (2023), algorithm 2, line by line; the weights alone are float32, because the model is."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        self.param_groups = groups
        self.betas = betas
        self.moments: dict[torch.Tensor, torch.Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        beta1, beta2 = self.betas
        for group in self.param_groups:
            for weight in group["params"]:
                theta, g = weight.double(), weight.grad.double()
                m = self.moments.get(weight, torch.zeros_like(theta))
                c = beta1 * m + (1 - beta1) * g
                weight.copy_(theta - group["lr"] * (torch.sign(c) + group["weight_decay"] * theta))
                self.moments[weight] = beta2 * m + (1 - beta2) * g


def plain_optimizers(weights: dict[str, torch.Tensor], settings: OptimizerSettings) -> list[Any]:
    """Optimizers that share the weights out as the settings say; their groups have `lr_scale`."""
    groups = []
    for name, weight in weights.items():
        other = next((group for group in settings.groups if fnmatchcase(name, group.match)), None)
        decay = settings.weight_decay if weight.ndim > 1 else 0.0
        if other is not None and other.weight_decay is not None:
            decay = other.weight_decay
        groups.append({"params": [weight], "weight_decay": decay, "lr_scale": 1.0 if other is None else other.lr_scale})
    if settings.name == "lion":
        return [PlainLion(groups, settings.betas)]
    by_muon = [
        settings.name == "muon" and name.startswith("layers.") and weight.ndim == 2 for name, weight in weights.items()
    ]
    left = [group for group, taken in zip(groups, by_muon, strict=True) if not taken]
    optimizers: list[Any] = [torch.optim.AdamW(left, betas=settings.betas, eps=settings.eps, foreach=False)]
    if settings.name == "muon":
        taken = [group for group, taken in zip(groups, by_muon, strict=True) if taken]
        optimizers.append(torch.optim.Muon(taken, momentum=settings.momentum, adjust_lr_fn="match_rms_adamw"))
    return optimizers

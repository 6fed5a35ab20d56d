"""Lion: the sign of the interpolated momentum (Chen et al., 2023, "Symbolic Discovery of Optimization Algorithms").

torch has none, and DeepSpeed's has to be compiled at first start.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


class Lion(Optimizer):
    """Algorithm 2 of the paper, elementwise, with one moment.

    With gradient g, momentum m, parameter p, learning rate r and decoupled weight decay d:

        p -= r * (sign(beta1 * m + (1 - beta1) * g) + d * p)
        m  = beta2 * m + (1 - beta2) * g

    A parameter without a gradient is left alone. The state (a step counter and `exp_avg`) is made by `create_moments`.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            if not (parameters := [p for p in group["params"] if p.grad is not None]):
                continue
            gradients = [p.grad for p in parameters]
            moments = [self.state[p]["exp_avg"] for p in parameters]
            (beta1, beta2), rate = group["betas"], group["lr"]
            torch._foreach_add_([self.state[p]["step"] for p in parameters], 1)
            directions = torch._foreach_lerp(moments, gradients, 1 - beta1)
            torch._foreach_sign_(directions)
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
            torch._foreach_add_(parameters, directions, alpha=-rate)
            torch._foreach_lerp_(moments, gradients, 1 - beta2)

"""The feed-forward half of a block."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, 2020, equation 6)."""

    def __init__(self, width: int, inner_width: int, bias: bool, linear: type[nn.Linear]) -> None:
        super().__init__()
        self.gate_proj = linear(width, inner_width, bias=bias)
        self.up_proj = linear(width, inner_width, bias=bias)
        self.down_proj = linear(inner_width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., width] to [..., width]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class GELU(nn.Module):
    """down(gelu(up(x))) with the tanh approximation (Hendrycks and Gimpel, 2016, section 2), as GPT-2 has it."""

    def __init__(self, width: int, inner_width: int, bias: bool, linear: type[nn.Linear]) -> None:
        super().__init__()
        self.up_proj = linear(width, inner_width, bias=bias)
        self.down_proj = linear(inner_width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., width] to [..., width]."""
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


FEED_FORWARDS: dict[str, Callable[[int, int, bool, type[nn.Linear]], nn.Module]] = {"swiglu": SwiGLU, "gelu": GELU}

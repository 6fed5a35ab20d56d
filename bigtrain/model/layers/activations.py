"""Activation functions of the feed-forward layer, by Hugging Face's names, and the soft cap of scores and logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


def relu2(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al., 2021, section 4.2)."""
    return F.relu(x).square()


def soft_capped(x: Tensor, cap: float | None) -> Tensor:
    """cap tanh(x / cap) (Gemma 2, section 2); x as it is where there is no cap."""
    return x if cap is None else cap * torch.tanh(x / cap)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": relu2,
}

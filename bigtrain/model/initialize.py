"""Initial weights: a function of the parameter's name and the seed, whatever the number of ranks."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from bigtrain.config import ModelSettings

_INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight", "experts.down_proj")


def initialize(name: str, parameter: Tensor, settings: ModelSettings, seed: int) -> None:
    """Fill one whole parameter in place.

    Matrices are normal(0, initializer_range), those back into the residual stream divided by sqrt(2 layers) (GPT-2
    paper, section 2.3), those of the blocks by muP's sqrt(m); norms begin as the identity, biases as 0. Each name has
    its own random stream, so ranks that fill all, some or one of the parameters agree, on devices of one kind.
    """
    with torch.no_grad():
        if parameter.dim() == 1:
            identity = 0.0 if settings.norm == "rms_norm_zero_centered" else 1.0
            parameter.fill_(0.0 if name.endswith("bias") else identity)
            return
        scale = 1.0 / math.sqrt(2 * settings.num_hidden_layers) if name.endswith(_INTO_RESIDUAL) else 1.0
        if is_hidden_matrix(name):
            scale /= math.sqrt(settings.width_multiplier)
        digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
        generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest, "little") >> 1)
        values = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
        parameter.copy_(values.normal_(0.0, settings.initializer_range * scale, generator=generator))


def is_hidden_matrix(name: str) -> bool:
    """Whether muP scales this parameter by width: a matrix of the blocks. By name: ZeRO 3 hides the shape."""
    return "layers." in name and not name.endswith(("norm.weight", "bias"))

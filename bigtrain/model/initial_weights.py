"""Initial weights: a function of the parameter's name and the seed, whatever the number of ranks."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from bigtrain.config import ModelSettings
from bigtrain.model.adapter_parts import LORA_A, LORA_B, PARTS, UP

_INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight", "experts.down_proj")


def initialize(name: str, parameter: Tensor, settings: ModelSettings, seed: int) -> None:
    """Fill one whole parameter in place.

    Matrices are normal(0, initializer_range), those back into the residual stream divided by sqrt(2 layers) (GPT-2
    paper, section 2.3), those of the blocks by muP's sqrt(m); norms begin as the identity, biases as 0. Each name has
    its own random stream, so ranks that fill all, some or one of the parameters agree, on devices of one kind.

    Of an adapter's matrices the second is 0, so that it changes nothing at first, and LoRA's first is
    uniform(-1 / sqrt(columns), 1 / sqrt(columns)), as in `peft`. The magnitudes of DoRA follow from the base's weights:
    see `first_magnitude`.
    """
    with torch.no_grad():
        if parameter.dim() == 1:
            identity = 0.0 if settings.norm == "rms_norm_zero_centered" else 1.0
            parameter.fill_(0.0 if name.endswith("bias") else identity)
            return
        if name.endswith((LORA_B, UP)):
            parameter.zero_()
            return
        scale = 1.0 / math.sqrt(2 * settings.num_hidden_layers) if name.endswith(_INTO_RESIDUAL) else 1.0
        if is_hidden_matrix(name):
            scale /= math.sqrt(settings.width_multiplier)
        digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
        generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest, "little") >> 1)
        values = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
        if name.endswith(LORA_A):
            bound = parameter.shape[1] ** -0.5
            parameter.copy_(values.uniform_(-bound, bound, generator=generator))
            return
        parameter.copy_(values.normal_(0.0, settings.initializer_range * scale, generator=generator))


def is_hidden_matrix(name: str) -> bool:
    """Whether muP scales this parameter by width: a matrix of the blocks, but none of an adapter, which has other rates
    than those of its base. By name: ZeRO 3 hides the shape."""
    return "layers." in name and not name.endswith(("norm.weight", "bias")) and name.rpartition(".")[2] not in PARTS

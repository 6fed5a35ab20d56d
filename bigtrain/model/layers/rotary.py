"""Rotary position embedding (Su et al., 2021), in Hugging Face's convention: a head's first and second half rotate.

frequencies [R / 2], attention factor  <- settings: theta, and what stretches it for longer contexts
Rotary: cos, sin [B, T, 1, R]          <- frequencies and positions
rotate: queries and keys [B, T, H, D]  <- the first R of D turned
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigtrain.config import ModelSettings, RopeScaling


class Rotary(NamedTuple):
    """Cosine and sine of every token's angles, [B, T, 1, R]: one rotation shared by all heads and all layers."""

    cos: Tensor
    sin: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        """Turn the first R of queries or keys x, [B, T, H, D], by their positions."""
        width = self.cos.shape[-1]
        turned, rest = x[..., :width], x[..., width:]
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            # For one token an autograd function costs more than the rotation.
            rotated = _CpuRotation.apply if torch.is_grad_enabled() else _rotated
            turned = rotated(turned, self.cos, self.sin)
        else:
            first, second = turned.chunk(2, dim=-1)
            turned = turned * self.cos + torch.cat((-second, first), dim=-1) * self.sin
        return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


class _CpuRotation(torch.autograd.Function):
    """The rotation in three passes instead of five; backwards, the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin, -1.0), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: float = 1.0) -> Tensor:
    half = x.shape[-1] // 2
    result = x * cos
    result[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-direction)
    result[..., half:].addcmul_(x[..., :half], sin[..., half:], value=direction)
    return result


def rotary_at(position_ids: Tensor, settings: ModelSettings, dtype: torch.dtype) -> Rotary:
    """The rotation for each position, angles frequency * position in float32.

    Computed again in each forward pass, which costs less than a layer's norm: a table held as a buffer would follow
    the model to bfloat16, where positions above 256 are no longer distinct.

    Args:
        position_ids: [B, T] integers.
        settings: R, theta and the scaling.
        dtype: type of the result, that of the queries and keys.
    """
    frequencies = rotary_frequencies(settings, position_ids.device)
    angles = position_ids[:, :, None, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    factor = attention_factor(settings.rope_scaling)
    return Rotary((angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype))


def rotary_frequencies(settings: ModelSettings, device: torch.device | None = None) -> Tensor:
    """Radians for each position, [R / 2] float32: theta^(-2i / R), stretched as `rope_scaling` says."""
    width, theta, scaling = settings.rotary_width, effective_theta(settings), settings.rope_scaling
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.int64).float() / width
    frequencies = 1.0 / (theta**exponents)
    if scaling is None or scaling.rope_type == "ntk":
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    original = original_context(settings)
    kept = (
        _kept_by_yarn(settings, original, device)
        if scaling.rope_type == "yarn"
        else _kept_by_llama3(frequencies, scaling, original)
    )
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def effective_theta(settings: ModelSettings) -> float:
    """The base of the frequencies, raised where the scaling is ntk, which is nothing else."""
    scaling, width = settings.rope_scaling, settings.rotary_width
    if scaling is None or scaling.rope_type != "ntk" or width <= 2:
        return settings.rope_theta
    return settings.rope_theta * scaling.factor ** (width / (width - 2))


def attention_factor(scaling: RopeScaling | None) -> float:
    """What cosine and sine are multiplied by (Peng et al., 2023, YaRN, equation 22)."""
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    return scaling.attention_factor or (0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0)


def original_context(settings: ModelSettings) -> float:
    """Tokens of the context before it was stretched."""
    scaling = settings.rope_scaling
    assert scaling is not None
    return scaling.original_max_position_embeddings or settings.max_position_embeddings / scaling.factor


def _kept_by_llama3(frequencies: Tensor, scaling: RopeScaling, original: float) -> Tensor:
    """How much of each frequency stays, 0 to 1: by turns within the original context, as Llama 3.1 was released."""
    turns = original * frequencies / (2 * math.pi)
    return ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)


def _kept_by_yarn(settings: ModelSettings, original: float, device: torch.device | None) -> Tensor:
    """How much of each frequency stays, 0 to 1 (Peng et al., 2023, section 3.2, over dimensions as in their code)."""
    scaling, width = settings.rope_scaling, settings.rotary_width
    assert scaling is not None

    def dimension_that_turns(times: float) -> float:
        return width * math.log(original / (times * 2 * math.pi)) / (2 * math.log(settings.rope_theta))

    low = max(math.floor(dimension_that_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension_that_turns(scaling.beta_slow)), width - 1)
    ramp = (torch.arange(width // 2, device=device).float() - low) / (high - low if high > low else 1e-3)
    return 1 - ramp.clamp(0, 1)

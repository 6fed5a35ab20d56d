"""Exact counts: parameters, and floating-point operations for a token."""

from __future__ import annotations

import torch

from bigtrain.config.settings import ModelSettings
from bigtrain.model.decoder import build_model


def count_parameters(settings: ModelSettings) -> int:
    """Parameters of the model, tied ones once, counted on the meta device."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(settings).parameters())


def flops_per_token(settings: ModelSettings, sequence_length: int, *, causal: bool = False) -> float:
    """Floating-point operations of matrix products for one training token, forward and backward.

    By the field's convention (Chowdhery et al., 2022, PaLM, appendix B): 6 N + 12 L H Q T. N counts the weights that
    multiply (the head, tied or not, but no embedding look-up, norm or bias); L layers, H heads of width Q, sequences
    of T tokens; attention is counted as if every token saw the whole sequence, and recomputation is not counted.

    Args:
        settings: the shape.
        sequence_length: T, in tokens.
        causal: count attention as it is, over the (T + 1) / 2 tokens that a token sees on average.
    """
    with torch.device("meta"):
        model = build_model(settings)
    multiplying = settings.vocab_size * settings.hidden_size + sum(
        parameter.numel() for parameter in model.layers.parameters() if parameter.dim() == 2
    )
    seen = (sequence_length + 1) / 2 if causal else sequence_length
    attention_width = settings.num_attention_heads * settings.head_width
    return 6 * multiplying + 12 * settings.num_hidden_layers * attention_width * seen

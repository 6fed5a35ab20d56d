"""Exact counts: parameters, and floating-point operations for a token."""

from __future__ import annotations

import torch

from bigtrain.config import ModelSettings
from bigtrain.model.decoder import build_model


def count_parameters(settings: ModelSettings) -> int:
    """Parameters of the model, tied ones once, counted on the meta device; those of multi-token prediction too."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(settings).parameters())


def count_active_parameters(settings: ModelSettings) -> int:
    """Parameters at work for any one token when the model is used: of the experts those that it chooses, and none of
    multi-token prediction."""
    with torch.device("meta"):
        named = list(build_model(settings).named_parameters())
    shares = [(parameter.numel(), _share_at_work(name, settings)) for name, parameter in named if not _is_ahead(name)]
    return round(sum(size * share for size, share in shares))


def flops_per_token(settings: ModelSettings, sequence_length: int, *, causal: bool = False) -> float:
    """Floating-point operations of matrix products for one training token, forward and backward.

    By the field's convention (Chowdhery et al., 2022, PaLM, appendix B): 6 N + 12 L H Q T. N counts the weights that
    multiply a token (the head, tied or not, the experts that work for it, but no embedding look-up, norm or bias); L
    layers, H heads of width Q, sequences of T tokens; attention is counted as if every token saw the whole sequence,
    and recomputation is not counted. A module of multi-token prediction is a layer with a head and a projection.

    Args:
        settings: the shape.
        sequence_length: T, in tokens.
        causal: count attention as it is, over the tokens that a token sees on average: (T + 1) / 2, or fewer where a
            layer has a sliding window.
    """
    with torch.device("meta"):
        model = build_model(settings)
    ahead = settings.num_nextn_predict_layers
    multiplying = (1 + ahead) * settings.vocab_size * settings.hidden_size + sum(
        parameter.numel() * _share_at_work(name, settings)
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2 and "layers." in name
    )
    attention_width = settings.num_attention_heads * settings.head_width
    windows = [settings.window_of(layer) for layer in range(settings.num_hidden_layers + ahead)]
    seen = [_tokens_seen(sequence_length, window) if causal else sequence_length for window in windows]
    return 6 * multiplying + 12 * attention_width * sum(seen)


def _share_at_work(name: str, settings: ModelSettings) -> float:
    """The share of a weight that multiplies any one token."""
    return settings.num_experts_per_tok / settings.num_experts if ".experts." in name else 1.0


def _is_ahead(name: str) -> bool:
    return name.startswith("next_token_layers.")


def _tokens_seen(length: int, window: int | None) -> float:
    """How many tokens one sees on average, itself included, in a document of this length."""
    window = min(window or length, length)
    return (window * (window + 1) / 2 + (length - window) * window) / length

"""Exact counts: parameters, and floating-point operations for a token."""

from __future__ import annotations

import torch
from torch import Tensor

from bigtrain.config import AdapterSettings, ModelSettings
from bigtrain.model.build import build_model


def count_parameters(settings: ModelSettings) -> int:
    """Parameters of the model, tied ones once, counted on the meta device; those of multi-token prediction too."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(settings).parameters())


def count_learning_parameters(settings: ModelSettings, adapter: AdapterSettings) -> int:
    """Parameters that learn: with an adapter its own, and those of the modules that it lets learn as a whole."""
    with torch.device("meta"):
        model = build_model(settings, adapter=adapter)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_active_parameters(settings: ModelSettings) -> int:
    """Parameters at work for any one token when the model is used: of the experts those that it chooses, and none of
    multi-token prediction."""
    with torch.device("meta"):
        named = list(build_model(settings).named_parameters())
    shares = [(parameter.numel(), _share_at_work(name, settings)) for name, parameter in named if not _is_ahead(name)]
    return round(sum(size * share for size, share in shares))


def flops_per_token(
    settings: ModelSettings,
    sequence_length: int,
    *,
    causal: bool = False,
    labelled: float = 1.0,
    encoder_length: int | None = None,
    adapter: AdapterSettings | None = None,
) -> float:
    """Floating-point operations of matrix products for one training token, forward and backward.

    By the field's convention (Chowdhery et al., 2022, PaLM, appendix B): 6 N + 12 L H Q T. N counts the weights that
    multiply a token (the head, tied or not, the experts that work for it, but no embedding look-up, norm or bias); L
    layers, H heads of width Q, sequences of T tokens; attention is counted as if every token saw the whole sequence,
    and recomputation is not counted. A module of multi-token prediction is a layer with a head and a projection. A
    block that several layers share is counted for each.

    A recurrent layer has no attention: only its weights count. Convolutions over bytes and the highway layers after
    them count as a look-up, because they are computed once for all occurrences of a token.

    Of two streams, the second one multiplies as many tokens as have labels, but makes no keys and values of its own.
    Scores have a second product, with the keys of distances. Making these is not counted: their number is not that of
    the tokens.

    Of an encoder-decoder it is for one token of the decoder, with its share of what the encoder does: the weights that
    multiply the encoder's S tokens count S / T times, and cross-attention sees S tokens.

    A weight that does not learn has no gradient: of its three products two are left, and it counts 4 times. The
    gradient of what enters the first layer that learns is counted, though nobody needs it.

    Args:
        settings: the shape.
        sequence_length: T, in tokens.
        causal: count attention as it is, over the tokens that a token sees on average: of a decoder (T + 1) / 2, of an
            encoder all, or fewer where a layer has a sliding window.
        labelled: the share of tokens with a label. An encoder, a model of two streams and the head of a task that
            predicts classes compute their head for these alone, a decoder for all.
        encoder_length: encoder_decoder: S, in tokens. Default: T.
        adapter: what learns in the place of the model's own parameters.
    """
    with torch.device("meta"):
        model = build_model(settings, adapter=adapter)
    ahead = settings.num_nextn_predict_layers
    classifies = settings.num_labels > 0
    heads = labelled if settings.architecture in ("encoder", "two_stream") or classifies else 1 + ahead
    of_labels = 0.0
    if settings.task_head == "none":
        of_labels = settings.vocab_size * settings.head_input_width * _share_of_products(model.lm_head.weight)
    read = (encoder_length or sequence_length) / sequence_length
    matrices = [
        (name, parameter.numel() * _share_of_products(parameter))
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2
    ]
    multiplying = heads * of_labels + sum(
        size * _uses(name, settings, heads, read) * _share_at_work(name, settings) for name, size in matrices
    )
    attention_width = settings.num_attention_heads * settings.head_width
    windows = [settings.window_of(layer) for layer in range(settings.num_hidden_layers + ahead)]
    if settings.architecture == "encoder_decoder":
        own = _tokens_seen(sequence_length, None) if causal else sequence_length
        others = read * sequence_length
        seen_by_all = settings.decoder_layers * (own + others) + settings.num_hidden_layers * others * read
        return 6 * multiplying + 12 * attention_width * seen_by_all
    if settings.architecture == "recurrent_encoder_decoder":
        return 6 * multiplying + 12 * settings.hidden_size * read * sequence_length
    if settings.architecture == "two_stream":  # three products for each pair, of which few are hidden
        return 6 * multiplying + 18 * attention_width * sequence_length * (1 + labelled) * settings.num_hidden_layers
    tokens_seen = _tokens_seen_on_both_sides if settings.two_sided else _tokens_seen
    seen = [tokens_seen(sequence_length, window) if causal else sequence_length for window in windows]
    return 6 * multiplying + 12 * attention_width * sum(seen)


_OF_ENCODER_TOKENS = (".cross_attn.k_proj.weight", ".cross_attn.v_proj.weight", "attention.key.weight")
"""Matrices of a decoder that multiply the states of its encoder."""


def _share_of_products(weight: Tensor) -> float:
    """The share of the three products of a matrix that training computes: without a gradient of its own two of them."""
    return 1 if weight.requires_grad else 2 / 3


def _share_at_work(name: str, settings: ModelSettings) -> float:
    """The share of a weight that multiplies any one token."""
    return settings.num_experts_per_tok / settings.num_experts if ".experts." in name else 1.0


def _uses(name: str, settings: ModelSettings, heads: float, read: float) -> float:
    """How often a matrix multiplies a token; 0 for what is only looked up, and for the head, tied or not.

    Args:
        name: of the matrix.
        settings: the shape.
        heads: how often the head is computed for a token.
        read: tokens of the encoder for one of the decoder.
    """
    if name.startswith("encoder.layers.") or name.endswith(_OF_ENCODER_TOKENS):
        return read
    if name == "lm_head.dense.weight":
        return heads
    if name.startswith("task_head."):
        return 1 if settings.task_head == "question_answering" else heads
    if settings.architecture == "two_stream" and name.startswith("layers."):
        if name.endswith((".r_proj.weight", ".segments")):
            return 0
        own = 0 if name.endswith((".k_proj.weight", ".v_proj.weight")) else heads
        return (1 + own) * settings.num_hidden_layers / settings.distinct_layers
    if name in ("embed_projection.weight", "attention.query.weight", "readout.weight"):
        return 1
    if name.startswith("layers."):
        return settings.num_hidden_layers / settings.distinct_layers
    return 1 if _is_ahead(name) else 0


def _is_ahead(name: str) -> bool:
    return name.startswith("next_token_layers.")


def _tokens_seen(length: int, window: int | None) -> float:
    """How many tokens one sees on average, itself included, in a document of this length."""
    window = min(window or length, length)
    return (window * (window + 1) / 2 + (length - window) * window) / length


def _tokens_seen_on_both_sides(length: int, window: int | None) -> float:
    """The same where a token sees those less than `window` places away on either side."""
    window = min(window or length, length)
    return (length * (2 * window - 1) - (window - 1) * window) / length

"""Smaller models of the target: the sizes of a ladder, by one rule.

A model with h of the target's H heads has h / H of its width, of its feed-forward width, of its key and value heads and
of its layers, but at least two of these. So heads keep their width, and models their proportions, which is what makes
one law fit them all (Kaplan et al., 2020, section 3.1: the proportions matter little, as long as they are not extreme).
One layer alone is another kind of model: it cannot compose two steps of attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings, Settings
from bigtrain.estimate import Counted
from bigtrain.model import count_active_parameters, flops_per_token
from bigtrain.trials.trial import changed

FEWEST_LAYERS = 2
FEWEST_SIZES = 3
LARGEST_SHARE = 0.5
"""Of the target's parameters: no rung is larger, so that there is something to predict."""
WIDTHS_OF_FEED_FORWARD = 8
"""Feed-forward widths are multiples of this."""


@dataclass(frozen=True)
class RungSize:
    """One size of a ladder."""

    model: ModelSettings
    parameters: int
    """N, as the ladder counts it."""
    flops_per_token: float
    """Forward and backward, attention included."""


def sizes_below(settings: Settings, counted: Counted) -> list[RungSize]:
    """The smaller models of a target, the smallest first.

    Args:
        settings: of the target.
        counted: which parameters to count.

    Raises:
        BigtrainError: the target has too few heads for three smaller models.
    """
    most = LARGEST_SHARE * parameters_of(settings.model, counted)
    sizes = (_size(settings, changes, counted) for changes in _smaller(settings.model))
    found = sorted((size for size in sizes if size.parameters <= most), key=lambda size: size.parameters)
    if len(found) < FEWEST_SIZES:
        model = settings.model
        raise BigtrainError(
            "there are too few smaller models of this one for a ladder",
            found=f"{len(found)} with at most half of its parameters: it has {model.num_attention_heads} heads, and a "
            "smaller model has fewer of them",
            wanted=f"at least {FEWEST_SIZES}",
            fix="give the target more and narrower heads, for example model.num_attention_heads="
            f"{max(4, 2 * model.num_attention_heads)}",
        )
    return found


def spread_sizes(sizes: Sequence[RungSize], number: int, span: float) -> list[RungSize]:
    """At most so many sizes up to the last one, about evenly spaced in log N, over at most a factor of `span`."""
    largest = sizes[-1].parameters
    within = [size for size in sizes if size.parameters >= largest / span]
    within = within if len(within) >= FEWEST_SIZES else list(sizes[-FEWEST_SIZES:])
    ratio = largest / within[0].parameters
    wanted = [math.log(within[0].parameters * ratio ** (step / (number - 1))) for step in range(number)]
    chosen = {min(within, key=lambda size: abs(math.log(size.parameters) - each)).parameters for each in wanted}
    return [size for size in within if size.parameters in chosen]


def parameters_of(model: ModelSettings, counted: Counted) -> int:
    """N: the parameters at work for a token, with or without embeddings, an untied head and learned positions."""
    parameters = count_active_parameters(model)
    if counted == "all":
        return parameters
    embedding = model.vocab_size * model.embedding_width
    head = 0 if model.tie_word_embeddings or model.task_head != "none" else model.vocab_size * model.head_input_width
    learned = model.position_embedding == "learned"
    positions = (model.max_position_embeddings + model.position_offset) * model.embedding_width if learned else 0
    return parameters - embedding - head - positions


def _size(settings: Settings, changes: dict[str, Any], counted: Counted) -> RungSize:
    model = changed(settings, {"model": changes, **ALONE}).model
    flops = flops_per_token(model, settings.data.sequence_length)
    return RungSize(model, parameters_of(model, counted), flops)


ALONE: dict[str, Any] = {"engine": {"tensor_parallel_size": 1, "sequence_parallel_size": 1}}
"""A small model is not cut: its heads may be fewer than the ranks that share the target."""


def _smaller(model: ModelSettings) -> Iterator[dict[str, Any]]:
    """The keys of the section model that each smaller model changes."""
    most = model.num_attention_heads
    for heads in range(1, most):
        share = heads / most
        groups = max(1, round(model.key_value_heads * share))
        if model.hidden_size * heads % most or heads % groups:
            continue
        yield {
            "hidden_size": model.hidden_size * heads // most,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "head_dim": model.head_width,
            "num_hidden_layers": _layers(model.num_hidden_layers, share),
            "num_decoder_layers": None
            if model.num_decoder_layers is None
            else _layers(model.num_decoder_layers, share),
            "intermediate_size": _feed_forward(model.intermediate_size, share),
            "moe_intermediate_size": _feed_forward(model.moe_intermediate_size, share),
            "mlp_only_layers": [n for n in model.mlp_only_layers if n < _layers(model.num_hidden_layers, share)],
            "expect_parameters": None,
        }


def _layers(layers: int, share: float) -> int:
    return max(min(FEWEST_LAYERS, layers), round(layers * share))


def _feed_forward(width: int | None, share: float) -> int | None:
    return None if width is None else max(1, round(width * share / WIDTHS_OF_FEED_FORWARD)) * WIDTHS_OF_FEED_FORWARD

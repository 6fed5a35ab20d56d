"""Exact counts of parameters, which follow from a model's shapes."""

from __future__ import annotations

from bigtrain.config import AdapterSettings, ModelSettings
from bigtrain.model.shapes.model_shapes import model_shapes


def count_parameters(settings: ModelSettings) -> int:
    """Parameters of the model, tied ones once; those of multi-token prediction too."""
    return model_shapes(settings).count


def count_learning_parameters(settings: ModelSettings, adapter: AdapterSettings) -> int:
    """Parameters that learn: with an adapter its own, and those of the modules that it lets learn as a whole."""
    return model_shapes(settings, adapter).learning


def count_active_parameters(settings: ModelSettings) -> int:
    """Parameters at work for any one token when the model is used: of the experts those that it chooses, and none of
    multi-token prediction."""
    return model_shapes(settings).active

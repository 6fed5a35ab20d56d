"""The weights of a checkpoint as the run computes with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from bigtrain.checkpoint import Checkpoint, load_weights
from bigtrain.config import Settings
from bigtrain.engine import COMPUTE_DTYPES
from bigtrain.model import CompressedWeights, build_model, linear_layers

DISTILLATION = "distillation."
"""What the names of all begin with that is there to learn from a teacher, and no part of the model."""


class WithoutDistillation(Mapping[str, Tensor]):
    """Weights of a checkpoint without those that were there to learn from a teacher."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name]

    def __contains__(self, name: object) -> bool:  # else it would be read to answer
        return name in self._weights and not str(name).startswith(DISTILLATION)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._weights if not name.startswith(DISTILLATION))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def trained_weights(settings: Settings, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """All of the model that a checkpoint holds, whole, each read at every request; compressed where the run trains so.

    Args:
        settings: of the run, with the sections of the checkpoint.
        checkpoint: of the run.
    """
    weights = WithoutDistillation(load_weights(checkpoint))
    if not settings.compression.is_on:
        return weights
    with torch.device("meta"):
        matrices = linear_layers(build_model(settings.model))
    dtype = COMPUTE_DTYPES[settings.engine.precision]
    return CompressedWeights(weights, matrices, settings.compression, checkpoint.step, dtype)

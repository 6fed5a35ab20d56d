"""The model that another one learns from: opened, and compared with the one that learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings, Settings
from bigtrain.convert import StartingWeights, WeightSource
from bigtrain.data import TOKENIZER_FILE
from bigtrain.trained.weight_source import weight_source

TEACHER = "distillation.teacher."
"""What the names of its parameters begin with beside those of the model that learns."""


def open_teacher(settings: Settings, step: int | None = None) -> tuple[ModelSettings, StartingWeights]:
    """The shape of the teacher of a run, and its weights by the names of its own parameters.

    Args:
        settings: of the run, with a `distillation.teacher`.
        step: of the checkpoint of the teacher, where that is a run. Default: the newest verified one.

    Raises:
        BigtrainError: it is of another family, predicts something else, or has another tokenizer.
    """
    folder = settings.distillation.teacher
    assert folder is not None
    source = weight_source(folder, step)
    _require_same(source, settings.model, folder)
    source.check_tokenizer(settings.data.dir / TOKENIZER_FILE)
    return source.settings, source.for_model(source.settings)


class Prefixed(Mapping[str, Tensor]):
    """Weights whose names begin with something more."""

    def __init__(self, prefix: str, weights: Mapping[str, Tensor]) -> None:
        self._prefix, self._weights = prefix, weights

    def __getitem__(self, name: str) -> Tensor:
        if not name.startswith(self._prefix):
            raise KeyError(name)
        return self._weights[name.removeprefix(self._prefix)]

    def __contains__(self, name: object) -> bool:  # else it would be read to answer
        return str(name).startswith(self._prefix) and str(name).removeprefix(self._prefix) in self._weights

    def __iter__(self) -> Iterator[str]:
        return (f"{self._prefix}{name}" for name in self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _require_same(source: WeightSource, own: ModelSettings, folder: Path) -> None:
    theirs = source.settings
    for key in ("family", "architecture", "vocab_size", "task_head", "num_labels"):
        if getattr(own, key) != getattr(theirs, key):
            raise BigtrainError(
                f"the teacher {folder} predicts something else than the model that learns from it",
                found=f"model.{key} {getattr(theirs, key)} of the teacher",
                wanted=f"model.{key} {getattr(own, key)}, as the model has it",
                fix="take another distillation.teacher, or change the section model",
            )
    if theirs.max_position_embeddings < own.max_position_embeddings and theirs.position_embedding == "learned":
        raise BigtrainError(
            f"the teacher {folder} reads shorter texts than the model that learns from it",
            found=f"model.max_position_embeddings {theirs.max_position_embeddings} of the teacher",
            wanted=f"{own.max_position_embeddings} or more",
            fix="lower model.max_position_embeddings and data.sequence_length, or take another distillation.teacher",
        )

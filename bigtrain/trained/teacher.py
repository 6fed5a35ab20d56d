"""The model that another one learns from: opened, and compared with the one that learns."""

from __future__ import annotations

from pathlib import Path

import torch

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings, Settings
from bigtrain.convert import StartingWeights, WeightSource
from bigtrain.data import TOKENIZER_FILE, KeptManifest, open_token_bytes
from bigtrain.model import LanguageModel
from bigtrain.trained.trained_weights import DISTILLATION
from bigtrain.trained.weight_source import weight_source

TEACHER = f"{DISTILLATION}teacher."
"""What the names of a teacher's parameters begin with beside those of the model that learns."""


def open_teacher(folder: Path, settings: Settings, step: int | None = None) -> tuple[ModelSettings, StartingWeights]:
    """The shape of a teacher, and its weights by the names of its own parameters.

    Args:
        folder: a run directory, or an import.
        settings: of the run that learns from it.
        step: of the checkpoint of the teacher, where that is a run. Default: the newest verified one.

    Raises:
        BigtrainError: it is of another family, predicts something else, or has another tokenizer.
    """
    source = weight_source(folder, step)
    _require_same(source, settings.model, folder)
    source.check_tokenizer(settings.data.dir / TOKENIZER_FILE)
    return source.settings, source.for_model(source.settings)


def teacher_digests(settings: Settings, weights: StartingWeights | None) -> dict[str, str]:
    """What a checkpoint of a run says of its teacher: the digest of each weight, or the id of what was kept of it.

    Args:
        settings: of the run.
        weights: of `open_teacher`; None without a teacher beside the model.

    Raises:
        BigtrainError: there are no kept outputs where the settings say so.
    """
    if weights is not None:
        return weights.under(TEACHER).digests
    folder = settings.distillation.kept_outputs
    return {} if folder is None else {f"{DISTILLATION}kept_outputs": KeptManifest.read(folder).kept_id}


def complete_teacher(teacher: LanguageModel, weights: StartingWeights, settings: Settings) -> None:
    """Give a teacher what it knows beside its parameters.

    Args:
        teacher: its parameters may be anything.
        weights: of `open_teacher`.
        settings: of the run that learns from it.

    Raises:
        BigtrainError: the data have no tokenizer, or weights and model do not fit.
    """
    if teacher.settings.character_filters:
        table = open_token_bytes(teacher.settings, settings.data.dir)
        teacher.set_token_bytes(torch.from_numpy(table))
    teacher.set_router_moves(weights.router_moves)


def _require_same(source: WeightSource, own: ModelSettings, folder: Path) -> None:
    theirs = source.settings
    for key in ("family", "architecture", "vocab_size", "task_head", "num_labels"):
        if getattr(own, key) != getattr(theirs, key):
            raise BigtrainError(
                f"the teacher {folder} predicts something else than the model that learns from it",
                found=f"model.{key} {getattr(theirs, key)} of the teacher",
                wanted=f"model.{key} {getattr(own, key)}, as the model has it",
                fix="take another teacher, or change the section model",
            )
    if theirs.max_position_embeddings < own.max_position_embeddings and theirs.position_embedding == "learned":
        raise BigtrainError(
            f"the teacher {folder} reads shorter texts than the model that learns from it",
            found=f"model.max_position_embeddings {theirs.max_position_embeddings} of the teacher",
            wanted=f"{own.max_position_embeddings} or more",
            fix="lower model.max_position_embeddings and data.sequence_length, or take another teacher",
        )

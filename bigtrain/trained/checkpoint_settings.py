"""The settings of a run, with the model and the adapter that a checkpoint was written with.

RUN/config.yaml says what the run was last started with, and can be edited. What the weights of a checkpoint compute is
in the checkpoint's manifest: where the two differ, the change was allowed when the run went on, or it is an error.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigtrain.base import BigtrainError
from bigtrain.checkpoint import Change, Checkpoint, changes_since, is_allowed
from bigtrain.config import AdapterSettings, CompressionSettings, ModelSettings, Settings, mathematics
from bigtrain.data import TOKENIZER_FILE
from bigtrain.rundir import Event, RunDirectory, read_events
from bigtrain.trained.checkpoints import open_checkpoint

logger = logging.getLogger(__name__)

Sections = ModelSettings | AdapterSettings | CompressionSettings
_SECTIONS: Mapping[str, type[ModelSettings] | type[AdapterSettings] | type[CompressionSettings]] = {
    "model": ModelSettings,
    "adapter": AdapterSettings,
    "compression": CompressionSettings,
}
"""The sections that say what the weights of a checkpoint compute."""
_ONLY_LOSSES = frozenset({
    "model.initializer_range", "model.router_aux_loss_coef", "model.router_z_loss_coef",
    "model.router_bias_update_rate", "model.z_loss_coef", "model.mtp_loss_coef", "adapter.lora_dropout",
})  # fmt: skip
"""Keys of these sections that change how a model learns, and not what it computes."""


def open_with_settings(run: RunDirectory, step: int | None) -> tuple[Settings, Checkpoint]:
    """A checkpoint of a run, and the settings of the run with the model and the adapter of that checkpoint.

    Args:
        run: a run directory.
        step: of the checkpoint. Default: the newest verified one.

    Raises:
        BigtrainError: there is no such checkpoint, it is damaged, RUN/config.yaml has another model, or it would have
            data fetched elsewhere: see `RunDirectory.settings_for_data`.
    """
    checkpoint = open_checkpoint(run, step)
    return settings_of_checkpoint(run, checkpoint), checkpoint


def settings_of_checkpoint(run: RunDirectory, checkpoint: Checkpoint) -> Settings:
    """The settings of a run with the model of one of its checkpoints.

    Raises:
        BigtrainError: see `open_with_settings`.
    """
    settings = run.settings_for_data()
    settings = settings.model_copy(update={"model": settings.at_step(checkpoint.step).model})
    if not (changes := model_changes(settings, checkpoint)):
        return settings
    if refused := [change for change in changes if not _was_allowed(change, run, settings)]:
        raise BigtrainError(
            f"{run.config} does not have the model of the checkpoint of step {checkpoint.step}",
            found=", ".join(f"{change.key}: {change.now}" for change in refused),
            wanted=", ".join(f"{change.key}: {change.then}" for change in refused),
            fix=f"restore these values in {run.config}",
        )
    for change in changes:
        logger.warning(
            f"the checkpoint of step {checkpoint.step} was written with {change.key} {change.then}, which is used; "
            f"the run changed it to {change.now} later"
        )
    sections = {name: _section_of(checkpoint, name) for name in _SECTIONS}
    return settings.model_copy(update=sections)


def tokenizer_file_of(settings: Settings) -> Path:
    """The tokenizer of a run's data. Raises BigtrainError where it is not there."""
    file = settings.data.dir / TOKENIZER_FILE
    if not file.is_file():
        raise BigtrainError(
            f"{file}, the tokenizer of this run, is not there",
            found=f"data.dir {settings.data.dir}, seen from {Path.cwd()}",
            wanted="the data folder that the run was started with",
            fix="start the command in the directory in which the run was started, or put the data folder back",
        )
    return file


def model_changes(settings: Settings, checkpoint: Checkpoint) -> list[Change]:
    """The settings of model and adapter that differ from those in a checkpoint and change what it computes."""
    return [
        change
        for change in changes_since(checkpoint.manifest.mathematics, mathematics(settings))
        if change.key.partition(".")[0] in _SECTIONS and change.key not in _ONLY_LOSSES
    ]


def _was_allowed(change: Change, run: RunDirectory, settings: Settings) -> bool:
    """Whether the run may go on, or once went on, with this value."""
    if is_allowed(change.key, settings.checkpoint.allow_change):
        return True
    events = (event for event in read_events(run.events) if event["event"] == Event.CHANGE)
    return any(event["key"] == change.key and change.now in (event["from"], event["to"]) for event in events)


def _section_of(checkpoint: Checkpoint, name: str) -> Sections:
    """A section that the manifest of a checkpoint has; an earlier version left sections out that it did not know."""
    section: dict[str, Any] = {}
    for key, value in checkpoint.manifest.mathematics.items():
        if key.startswith(f"{name}."):
            *outer, last = key.removeprefix(f"{name}.").split(".")
            inner = section
            for part in outer:
                inner = inner.setdefault(part, {})
            inner[last] = value
    try:
        return _SECTIONS[name].model_validate_json(json.dumps(section), strict=True)
    except (ValidationError, AttributeError, TypeError) as error:
        raise BigtrainError(
            f"the manifest of {checkpoint.location} has no section {name}", found=str(error), fix="use another step"
        ) from None

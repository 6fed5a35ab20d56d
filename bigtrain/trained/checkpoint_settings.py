"""The settings of a run, with the model that a checkpoint was written with.

RUN/config.yaml says what the run was last started with, and can be edited. What the weights of a checkpoint compute is
in the checkpoint's manifest: where the two differ, the change was allowed when the run went on, or it is an error.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from pydantic import ValidationError

from bigtrain.base import BigtrainError
from bigtrain.checkpoint import Change, Checkpoint, changes_since, is_allowed
from bigtrain.config import ModelSettings, Settings, mathematics
from bigtrain.rundir import Event, RunDirectory, read_events
from bigtrain.trained.checkpoints import open_checkpoint

logger = logging.getLogger(__name__)

_SECTION = "model."
_ONLY_LOSSES = frozenset({
    "initializer_range", "router_aux_loss_coef", "router_z_loss_coef", "router_bias_update_rate", "z_loss_coef",
    "mtp_loss_coef",
})  # fmt: skip
"""Keys of the section that change how a model learns, and not what it computes."""


def open_with_settings(run: RunDirectory, step: int | None) -> tuple[Settings, Checkpoint]:
    """A checkpoint of a run, and the settings of the run with the model of that checkpoint.

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
    return settings.model_copy(update={"model": _model_of(checkpoint)})


def model_changes(settings: Settings, checkpoint: Checkpoint) -> list[Change]:
    """The settings of the model that differ from those in a checkpoint and change what it computes."""
    return [
        change
        for change in changes_since(checkpoint.manifest.mathematics, mathematics(settings))
        if change.key.startswith(_SECTION) and change.key.removeprefix(_SECTION) not in _ONLY_LOSSES
    ]


def _was_allowed(change: Change, run: RunDirectory, settings: Settings) -> bool:
    """Whether the run may go on, or once went on, with this value."""
    if is_allowed(change.key, settings.checkpoint.allow_change):
        return True
    events = (event for event in read_events(run.events) if event["event"] == Event.CHANGE)
    return any(event["key"] == change.key and change.now in (event["from"], event["to"]) for event in events)


def _model_of(checkpoint: Checkpoint) -> ModelSettings:
    """The section model that the manifest of a checkpoint has."""
    section: dict[str, Any] = {}
    for key, value in checkpoint.manifest.mathematics.items():
        if key.startswith(_SECTION):
            *outer, name = key.removeprefix(_SECTION).split(".")
            inner = section
            for part in outer:
                inner = inner.setdefault(part, {})
            inner[name] = value
    try:
        return ModelSettings.model_validate_json(json.dumps(section), strict=True)
    except (ValidationError, AttributeError, TypeError) as error:
        raise BigtrainError(
            f"the manifest of {checkpoint.location} has no section model", found=str(error), fix="use another step"
        ) from None

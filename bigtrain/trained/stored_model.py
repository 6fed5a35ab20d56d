"""A model that `eval`, `generate`, `export` and `compress` open: of a run's checkpoint, or that `compress` wrote."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from bigtrain.base import BigtrainError, read_json
from bigtrain.config import AdapterSettings, CompressionSettings, Settings, load_settings
from bigtrain.convert import COMPRESSION_RECORD, COMPRESSION_SETTINGS, Imported, is_compressed
from bigtrain.rundir import RunDirectory, RunState
from bigtrain.trained.base_model import plain_weights, weights_of
from bigtrain.trained.checkpoint_settings import open_with_settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredModel:
    """Weights, with the settings of the run that they are of."""

    path: Path
    """A run directory, or the folder that `bigtrain compress` wrote."""
    settings: Settings
    weights: Mapping[str, Tensor]
    """All of them, each read at every request; those of an adapter and its base, too."""
    step: int
    """Of the checkpoint that they are of, or were made from."""
    router_moves: dict[str, list[int]]
    """See `LanguageModel.router_moves`."""

    @classmethod
    def open(cls, path: Path, step: int | None = None) -> StoredModel:
        """Open a model without reading its weights.

        Args:
            path: see `path`.
            step: of a run's checkpoint. Default: the newest verified one.

        Raises:
            BigtrainError: no run, no such checkpoint, a damaged one, or one of another model than RUN/config.yaml has;
                or a folder that is not whole.
        """
        if is_compressed(path):
            return cls._of_folder(path, step)
        settings, checkpoint = open_with_settings(RunDirectory.of_existing_run(path), step)
        moves = RunState.of(checkpoint.manifest.state).router_moves
        return cls(path, settings, weights_of(settings, checkpoint), checkpoint.step, moves)

    def plain(self, merge: bool) -> StoredModel:
        """The same without an adapter, merged where `merge` says so, and without compression in training, which its
        weights have been through. Raises BigtrainError: see `plain_weights`."""
        weights = plain_weights(self.settings, self.weights, merge)
        sections = {"adapter": AdapterSettings(), "compression": CompressionSettings()}
        return replace(self, weights=weights, settings=self.settings.model_copy(update=sections))

    @classmethod
    def _of_folder(cls, path: Path, step: int | None) -> StoredModel:
        if step is not None:
            raise BigtrainError(
                f"{path} holds one model, without steps", found=f"--step {step}", fix="leave --step out"
            )
        imported = Imported(path)
        settings = load_settings(path / COMPRESSION_SETTINGS)
        RunDirectory(path).refuse_to_fetch_elsewhere(settings.data)
        settings = settings.model_copy(update={"model": imported.settings})
        return cls(path, settings, imported, read_json(path / COMPRESSION_RECORD)["step"], imported.router_moves)

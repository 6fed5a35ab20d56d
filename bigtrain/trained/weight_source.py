"""Weights that others start from or are trained beside: of a run's checkpoint, or of an import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from bigtrain.base import BigtrainError
from bigtrain.checkpoint import Checkpoint
from bigtrain.convert import Imported, WeightSource
from bigtrain.data import DataTokenizer
from bigtrain.rundir import RunDirectory, RunState
from bigtrain.trained.checkpoint_settings import settings_of_checkpoint, tokenizer_file_of
from bigtrain.trained.checkpoints import checkpoints_of_step, open_checkpoint
from bigtrain.trained.label_names import label_names
from bigtrain.trained.trained_weights import trained_weights


def weight_source(folder: Path, step: int | None = None) -> WeightSource:
    """The weights in a folder that `bigtrain import` wrote, or of a run.

    Args:
        folder: `model.init_from`, or a teacher.
        step: of the checkpoint of a run, from `verified_step`. Default: it is looked for.

    Raises:
        BigtrainError: it is neither, or not whole.
    """
    return RunWeights(folder, step) if _is_run(folder) else Imported(folder)


def verified_step(folder: Path) -> int | None:
    """The step of the newest verified checkpoint of a run; None where the folder is an import.

    It reads a whole checkpoint: one rank does it for all. Raises BigtrainError.
    """
    return open_checkpoint(RunDirectory.of_existing_run(folder), None).step if _is_run(folder) else None


class RunWeights(WeightSource):
    """The master weights of a checkpoint of a run, each read, and its hash compared, when it is asked for."""

    def __init__(self, run: Path, step: int | None = None) -> None:
        """Open a run.

        Args:
            run: a run directory.
            step: of a checkpoint that has been verified. Default: the newest one that can be verified.

        Raises:
            BigtrainError: there is no such checkpoint, RUN/config.yaml has another model, or the run's tokenizer is not
                there.
        """
        directory = RunDirectory.of_existing_run(run)
        self.folder, self.model_file = run, directory.config
        self.checkpoint: Checkpoint = (
            open_checkpoint(directory, None) if step is None else checkpoints_of_step(directory, step)[0]
        )
        settings = settings_of_checkpoint(directory, self.checkpoint)
        if settings.adapter.method != "none":
            raise BigtrainError(
                f"{run} has trained an adapter, which is no model by itself",
                found=f"adapter.method {settings.adapter.method}",
                wanted="a run of a whole model",
                fix=f"merge it: bigtrain export {run} MERGED --to hf --merge, then bigtrain import MERGED OUT",
            )
        self.settings, self._run_settings = settings.model, settings
        self.end_of_text = settings.data.tokenizer.end_of_text
        self.tokenizer_file = tokenizer_file_of(settings)
        self._weights = trained_weights(settings, self.checkpoint)

    @property
    def notes(self) -> list[str]:
        """From which step they are."""
        return [f"the run starts from the weights of step {self.checkpoint.step} of {self.folder}"]

    @property
    def router_moves(self) -> dict[str, list[int]]:
        """See `WeightSource.router_moves`."""
        return RunState.of(self.checkpoint.manifest.state).router_moves

    @property
    def begin(self) -> list[str]:
        """The tokens that the documents of the run begin with."""
        tokenizer = DataTokenizer.open(self.tokenizer_file.parent)
        return tokenizer.content.texts(tokenizer.begin_of_text.ids)

    @property
    def label_names(self) -> list[str] | None:
        """The names of the classes in the data of the run; None where these are not at hand."""
        return label_names(self._run_settings)

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name]

    def __contains__(self, name: object) -> bool:  # else it would be read to answer
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _is_run(folder: Path) -> bool:
    return RunDirectory(folder).config.is_file()

"""What `model.init_from` names: the weights of an import, or the float32 master weights of a run's checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from bigtrain.checkpoint import Checkpoint, load_weights
from bigtrain.config import Settings
from bigtrain.convert import Imported, StartingWeights, WeightSource
from bigtrain.data import TOKENIZER_FILE, DataTokenizer
from bigtrain.rundir import RunDirectory, RunState
from bigtrain.trained.checkpoint_settings import settings_of_checkpoint
from bigtrain.trained.checkpoints import checkpoints_of_step, open_checkpoint
from bigtrain.trained.export import tokenizer_file_of

logger = logging.getLogger(__name__)


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
        self.settings = settings.model
        self.end_of_text = settings.data.tokenizer.end_of_text
        self.tokenizer_file = tokenizer_file_of(settings)
        self._weights = load_weights(self.checkpoint)

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

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name]

    def __contains__(self, name: object) -> bool:  # else it would be read to answer
        return name in self.checkpoint.manifest.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def verified_step(settings: Settings) -> int | None:
    """The step of the newest verified checkpoint of the run that `model.init_from` names; None where it is an import.

    It reads a whole checkpoint: one rank does it for all. Raises BigtrainError.
    """
    folder = settings.model.init_from
    if folder is None or not _is_run(folder):
        return None
    return open_checkpoint(RunDirectory.of_existing_run(folder), None).step


def starting_weights(settings: Settings, step: int | None = None) -> StartingWeights:
    """The weights of `model.init_from`, checked against the model and the tokenizer of a new run.

    Args:
        settings: of the new run.
        step: of the checkpoint of a run, from `verified_step`. Default: it is looked for.

    Raises:
        BigtrainError: they are of another model or tokenizer, are not whole, or are not there.
    """
    folder = settings.model.init_from
    assert folder is not None
    source: WeightSource = RunWeights(folder, step) if _is_run(folder) else Imported(folder)
    source.check_tokenizer(settings.data.dir / TOKENIZER_FILE)
    tokenizer = DataTokenizer.open(settings.data.dir)
    begin = source.begin
    if begin and tokenizer.content.texts(tokenizer.begin_of_text.ids) != begin:
        logger.warning(
            f"documents in {settings.data.dir} do not begin with {', '.join(begin)}, which those that the weights of "
            "model.init_from were trained on begin with; data that are built in another data.dir do"
        )
    for note in (*source.notes, *source.check_model(settings.model)):
        logger.warning(note)
    weights = source.for_model(settings.model)
    if weights.sentence is not None:
        logger.warning(weights.sentence)
    return weights


def _is_run(folder: Path) -> bool:
    return RunDirectory(folder).config.is_file()

"""What a new run starts from: the weights that `model.init_from` names, checked against its model and tokenizer."""

from __future__ import annotations

import logging

from bigtrain.config import Settings
from bigtrain.convert import StartingWeights
from bigtrain.data import TOKENIZER_FILE, DataTokenizer
from bigtrain.trained.label_names import label_names, require_same_names
from bigtrain.trained.weight_source import weight_source

logger = logging.getLogger(__name__)


def starting_weights(settings: Settings, step: int | None = None) -> StartingWeights:
    """The weights of `model.init_from`, checked against the model and the tokenizer of a new run.

    Args:
        settings: of the new run.
        step: of the checkpoint of a run, from `verified_step`. Default: it is looked for.

    Raises:
        BigtrainError: they are of another model or tokenizer, are not whole, are not there, or a classifier that would
            be kept has other classes than the data.
    """
    folder = settings.model.init_from
    assert folder is not None
    source = weight_source(folder, step)
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
    if any(name.startswith("task_head.classifier.") for name in weights):
        require_same_names(label_names(settings), source.label_names, folder)
    if weights.sentence is not None:
        logger.warning(weights.sentence)
    return weights

"""The names of the classes of a run: what its data call the numbers that its model predicts."""

from __future__ import annotations

from collections.abc import Sequence

from bigtrain.base import BigtrainError
from bigtrain.config import Settings
from bigtrain.data import common_labels, open_datasets


def label_names(settings: Settings) -> list[str] | None:
    """The names in the order of their numbers; None for a model without classes, and where the data are not at hand."""
    if not settings.model.num_labels:
        return None
    try:
        labels = common_labels(open_datasets(settings.data, model_vocab_size=settings.model.vocab_size))
    except BigtrainError:
        return None
    return None if labels is None else list(labels.names)


def require_same_names(ours: Sequence[str] | None, theirs: Sequence[str] | None, folder: object) -> None:
    """Refuse to go on with a classifier whose numbers mean other classes. Names that nobody gave are not compared.

    Args:
        ours: of the data.
        theirs: of the classifier.
        folder: where it is, for the message.

    Raises:
        BigtrainError: they differ, or their order does.
    """
    if ours is None or theirs is None or list(ours) == list(theirs) or theirs[0] == "LABEL_0":
        return
    raise BigtrainError(
        f"the classifier of model.init_from {folder} has other classes than the data",
        found=", ".join(ours)[:500],
        wanted=", ".join(theirs)[:500],
        fix="give the sources label_names in that order, and build them in another data.dir; for other classes start "
        "from weights without this classifier",
    )

"""The text of a document with the labels of its tokens, for a terminal."""

from __future__ import annotations

from bigtrain.rundir import LabelledRun, PartOfDocument

ANSWER, NO_ENTITY = "assistant", "O"
"""Labels of a conversation's tokens that are trained on, and of words in no entity."""


def with_labels(part: PartOfDocument) -> str:
    """The text of a part of a document.

    In a conversation, what is not trained on is in double brackets. With other labels, each text is in brackets before
    its label, as in `[Rome|B-LOC]`; what has none, and words in no entity, stand alone.
    """
    if part.runs is None:
        return part.text or ""
    return "".join(_shown(run, part.labels) for run in part.runs)


def _shown(run: LabelledRun, labels: str | None) -> str:
    if labels == "turns":
        return run.text if run.label == ANSWER else f"\u27e6{run.text}\u27e7"
    return run.text if run.label in (None, NO_ENTITY) else f"[{run.text}|{run.label}]"

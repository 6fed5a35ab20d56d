"""What a rule's model says of documents: `bigtrain data classifier score` and `bigtrain data ngram score`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bigtrain.config import ClassifierSettings, PerplexitySettings
from bigtrain.data.build.clean.classifier import pin_classifier, score_of
from bigtrain.data.build.clean.perplexity import perplexity_of, pin_perplexity
from bigtrain.data.build.rule_models.sample_documents import sample_documents
from bigtrain.data.build.rule_models.train_ngram import Percentile, percentiles
from bigtrain.data.format.documents import Document


@dataclass(frozen=True)
class ScoredDocument:
    """What a model says of one document."""

    file: str
    """The name of its file; `text` where the command line has the text itself."""
    position: int
    """Its number in the file, from 0."""
    value: float | None
    """Null where the text has nothing that the model counts."""


@dataclass(frozen=True)
class ScoredDocuments:
    """What a rule's model says of documents."""

    model: str
    hash: str
    """Of its file."""
    measure: Literal["score", "perplexity"]
    count: int
    """Of documents that have a value."""
    documents: list[ScoredDocument]
    """The first of them."""
    percentiles: list[Percentile]
    """Of all values: limits for the rule."""


def score_by_classifier(
    limits: ClassifierSettings, inputs: Sequence[str], text_field: str, show: int
) -> ScoredDocuments:
    """The scores of documents by a classifier.

    Args:
        limits: names the model and the label.
        inputs: paths of documents; what is no path of a file is a text itself.
        text_field: the field or column of the text, in JSON lines and Parquet.
        show: how many documents the result lists.

    Raises:
        BigtrainError: the model or a file cannot be read.
    """
    pinned = pin_classifier(limits)
    values = _Values(lambda text: score_of(text, pinned), inputs, text_field, show)
    return values.scored("score", pinned.model, pinned.hash or "")


def score_by_perplexity(
    limits: PerplexitySettings, inputs: Sequence[str], text_field: str, show: int
) -> ScoredDocuments:
    """The perplexities of documents under an n-gram model; arguments and errors as for a classifier."""
    pinned = pin_perplexity(limits)
    values = _Values(lambda text: perplexity_of(text, pinned), inputs, text_field, show)
    return values.scored("perplexity", pinned.model, pinned.hash or "")


class _Values:
    def __init__(self, ask: Callable[[str], float | None], inputs: Sequence[str], text_field: str, show: int) -> None:
        self._found: list[float] = []
        self._shown: list[ScoredDocument] = []
        for given in inputs:
            if "://" in given or _is_path(given):
                documents = sample_documents([given], text_field, "INPUT")
            else:
                documents = iter([Document(given, "text", 0)])
            for document in documents:
                value = ask(document.text)
                if len(self._shown) < show:
                    self._shown.append(ScoredDocument(document.file, document.position, value))
                if value is not None:
                    self._found.append(value)

    def scored(self, measure: Literal["score", "perplexity"], model: Path, content: str) -> ScoredDocuments:
        """The result."""
        found = self._found
        return ScoredDocuments(str(model), content, measure, len(found), self._shown, percentiles(found))


def _is_path(given: str) -> bool:
    try:
        return Path(given).expanduser().exists() or any(Path().glob(given))
    except (OSError, ValueError, NotImplementedError, RuntimeError):  # too long for a name, absolute, or no pattern
        return False

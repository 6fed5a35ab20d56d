"""The filters that each document passes before deduplication, in a worker process."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bigtrain.config import CleanStep
from bigtrain.data.build.clean import NO_TEXT, NULL, POISON, Rejection, clean
from bigtrain.data.build.decontaminate import EvaluationNgrams
from bigtrain.data.build.execute import is_poison
from bigtrain.data.format.documents import Document


@dataclass(frozen=True)
class Filters:
    """A source's rules, then the comparison with evaluation texts; it is pickled for the worker processes."""

    rules: tuple[CleanStep, ...] = ()
    evaluation: EvaluationNgrams | None = None

    def __call__(self, document: Document) -> Document | Rejection:
        """The document after its rules, or why it is removed.

        Documents of token ids stay as they are: their source has no rules, and they have no words to compare.
        """
        if is_poison(document):
            return POISON
        if document.ids is not None:
            return document if document.ids else NO_TEXT
        if document.null:
            return NULL
        if not all(text.strip() for text in document.texts):
            return NO_TEXT
        text = clean(document.text, self.rules)
        if isinstance(text, Rejection):
            return text
        if self.evaluation is not None and (rejection := self.evaluation.rejection(text)) is not None:
            return rejection
        return replace(document, text=text)

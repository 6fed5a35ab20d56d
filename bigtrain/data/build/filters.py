"""The filters that each document passes before deduplication, in a worker process."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bigtrain.base import BigtrainError
from bigtrain.config import CleanStep
from bigtrain.data.build.clean import NO_TEXT, NULL, POISON, UNREAD, FunctionFailedError, Rejection, clean, contents_of
from bigtrain.data.build.decontaminate import EvaluationNgrams
from bigtrain.data.build.execute import is_poison
from bigtrain.data.format.documents import Document
from bigtrain.data.format.layout import Record


@dataclass(frozen=True)
class Filters:
    """A source's rules, then the comparison with evaluation texts; it is pickled for the worker processes."""

    rules: tuple[CleanStep, ...] = ()
    """Pinned: see `bigtrain.data.build.clean.pinned`."""
    evaluation: EvaluationNgrams | None = None

    @property
    def identity(self) -> Record:
        """What the result follows from beside the settings: evaluation texts, and files that rules read."""
        evaluation = {"evaluation_texts": self.evaluation.identity} if self.evaluation else {}
        contents = contents_of(self.rules)
        return {**evaluation, **({"rule_files": contents} if contents else {})}

    def __call__(self, document: Document) -> Document | Rejection:
        """The document after its rules, or why it is removed.

        Documents of token ids stay as they are: their source has no rules, and they have no words to compare.

        Raises:
            BigtrainError: a function of the user's own failed; it names the document.
        """
        if is_poison(document):
            return POISON
        if document.ids is not None:
            return document if document.ids else NO_TEXT
        if document.null:
            return NULL
        if document.unread is not None:
            return Rejection(UNREAD, document.unread)
        if not all(text.strip() for text in document.texts):
            return NO_TEXT
        try:
            text = clean(document.text, self.rules)
        except FunctionFailedError as error:
            where = f"{error.what} at document {document.position} of {document.file}"
            raise BigtrainError(where, found=error.found, wanted=error.wanted, fix=error.fix) from error
        if isinstance(text, Rejection):
            return text
        if self.evaluation is not None and (rejection := self.evaluation.rejection(text)) is not None:
            return rejection
        return replace(document, text=text)

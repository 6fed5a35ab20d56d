"""Which documents of a piece are kept, and what of their text: what a worker process does first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from bigtrain.config.cleaning import CleanStep
from bigtrain.config.errors import BigtrainError
from bigtrain.data.clean import NO_TEXT, Verdict, clean
from bigtrain.data.documents import Document, Piece, is_held_out
from bigtrain.data.funnel import DUPLICATE, Funnel


@dataclass(frozen=True)
class DistinctPiece:
    """A piece, and which of its documents are duplicates."""

    piece: Piece
    duplicates: bytes
    """A byte for each document, 1 where an earlier one has the same text."""

    def documents(self) -> Iterator[Document]:
        """All documents of the piece, duplicates too."""
        return self.piece.documents()


@dataclass(frozen=True)
class Selection:
    """The documents of a piece that are kept, cleaned, by split; and the account of all."""

    train: list[Document] = field(default_factory=list)
    validation: list[Document] = field(default_factory=list)
    funnel: Funnel = field(default_factory=Funnel)


@dataclass(frozen=True)
class SelectDocuments:
    """Reads a piece, drops duplicates, and applies the rules; this object travels to the worker processes."""

    rules: tuple[CleanStep, ...]
    validation_fraction: float

    def __call__(self, piece: Piece) -> Selection:
        """Select from one piece."""
        selection = Selection()
        for document, is_duplicate in _marked(piece):
            size = len(document.content)
            cleaned = DUPLICATE if is_duplicate else clean_document(document, self.rules)
            if isinstance(cleaned, Verdict):
                selection.funnel.remove(document, size, cleaned)
                continue
            held_out = is_held_out(document.file, document.position, self.validation_fraction)
            (selection.validation if held_out else selection.train).append(cleaned)
            selection.funnel.keep(cleaned, size, held_out=held_out)
        return selection


def clean_document(document: Document, rules: Sequence[CleanStep]) -> Document | Verdict:
    """A document as its rules leave it. Token ids stay as they are: a source of these has no rules."""
    if document.ids is not None:
        return document if document.ids else NO_TEXT
    result = clean(document.text, rules)
    return result if isinstance(result, Verdict) else replace(document, text=result)


def _marked(piece: Piece) -> Iterator[tuple[Document, bool]]:
    if not isinstance(piece, DistinctPiece):
        return ((document, False) for document in piece.documents())
    documents = list(piece.documents())
    if len(documents) != len(piece.duplicates):
        raise BigtrainError(
            "a corpus has changed while it was being built",
            found=f"{len(documents)} documents in a piece",
            wanted=f"{len(piece.duplicates)}, as when duplicates were looked for",
            fix="start the build again when nothing writes to the corpus",
        )
    return ((document, bool(mark)) for document, mark in zip(documents, piece.duplicates, strict=True))

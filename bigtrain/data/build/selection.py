"""Selects the documents of a piece that are kept, and cleans them: the first work of a worker process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

from bigtrain.base import BigtrainError
from bigtrain.data.build.clean import Rejection
from bigtrain.data.build.execute import note, noted_reading
from bigtrain.data.build.filters import Filters
from bigtrain.data.build.funnel import DUPLICATE, NEAR_DUPLICATE, Funnel
from bigtrain.data.format.documents import Document, Piece, is_held_out


class DuplicateMark(IntEnum):
    """The result of deduplication for a document."""

    KEPT = 0
    EXACT = 1
    """An earlier document has the same text."""
    NEAR = 2
    """An earlier document has nearly the same text."""


DUPLICATES = {DuplicateMark.EXACT: DUPLICATE, DuplicateMark.NEAR: NEAR_DUPLICATE}


@dataclass(frozen=True)
class DistinctPiece:
    """A piece, and which of its documents are duplicates."""

    piece: Piece
    marks: Callable[[], bytes]
    """Reads a `DuplicateMark` for each document."""
    originals: Mapping[int, str] = field(default_factory=dict)
    """For some duplicates, by index in the piece, the document that is kept instead: `SOURCE:FILE:POSITION`."""

    @property
    def extent(self) -> int:
        """The extent of the piece."""
        return self.piece.extent

    @property
    def continued(self) -> bool:
        """Whether the next piece belongs to the same group."""
        return self.piece.continued

    def documents(self) -> Iterator[Document]:
        """All documents of the piece, duplicates too."""
        return self.piece.documents()


@dataclass(frozen=True)
class Selection:
    """The kept documents of a piece, cleaned, by split; and the funnel of all its documents."""

    train: list[Document] = field(default_factory=list)
    validation: list[Document] = field(default_factory=list)
    funnel: Funnel = field(default_factory=Funnel)


@dataclass(frozen=True)
class SelectDocuments:
    """Reads a piece, drops duplicates, and applies the filters; it is pickled for the worker processes."""

    filters: Filters
    validation_fraction: float

    def __call__(self, piece: Piece) -> Selection:
        """Select from one piece."""
        selection = Selection()
        for document, duplicate in _marked(piece):
            note(document)
            size = len(document.content)
            cleaned = duplicate or self.filters(document)
            if isinstance(cleaned, Rejection):
                selection.funnel.remove(document, size, cleaned)
                continue
            held_out = document.held_out
            if held_out is None:
                held_out = is_held_out(document.file, document.position, self.validation_fraction, document.group)
            (selection.validation if held_out else selection.train).append(cleaned)
            selection.funnel.keep(cleaned, size, held_out=held_out)
        return selection


def _marked(piece: Piece) -> Iterator[tuple[Document, Rejection | None]]:
    """The documents of a piece, each with the rejection if it is a duplicate."""
    if not isinstance(piece, DistinctPiece):
        return ((document, None) for document in noted_reading(piece.documents()))
    documents, marks = list(noted_reading(piece.documents())), piece.marks()
    if len(documents) != len(marks):
        raise BigtrainError(
            "a corpus has changed while it was being built",
            found=f"{len(documents)} documents in a piece",
            wanted=f"{len(marks)}, as when it was deduplicated",
            fix="start the build again when nothing writes to the corpus",
        )
    rejections = (
        replace(DUPLICATES[DuplicateMark(mark)], evidence=piece.originals.get(index, "")) if mark else None
        for index, mark in enumerate(marks)
    )
    return zip(documents, rejections, strict=True)

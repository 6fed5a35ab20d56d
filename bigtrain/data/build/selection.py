"""Which documents of a piece are kept, and what of their text: what a worker process does first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

from bigtrain.base.errors import BigtrainError
from bigtrain.data.build.clean import Rejection
from bigtrain.data.build.filters import Filters
from bigtrain.data.build.funnel import DUPLICATE, NEAR_DUPLICATE, Funnel
from bigtrain.data.format.documents import Document, Piece, is_held_out


class DuplicateMark(IntEnum):
    """What deduplication found out about a document."""

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
    marks: bytes
    """A `DuplicateMark` for each document."""
    originals: Mapping[int, str] = field(default_factory=dict)
    """Of some duplicates, by their index in the piece, which document is kept instead: `SOURCE:FILE:POSITION`."""

    @property
    def extent(self) -> int:
        """That of the piece."""
        return self.piece.extent

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
    """Reads a piece, drops duplicates, and applies the filters; this object travels to the worker processes."""

    filters: Filters
    validation_fraction: float

    def __call__(self, piece: Piece) -> Selection:
        """Select from one piece."""
        selection = Selection()
        for document, duplicate in _marked(piece):
            size = len(document.content)
            cleaned = duplicate or self.filters(document)
            if isinstance(cleaned, Rejection):
                selection.funnel.remove(document, size, cleaned)
                continue
            held_out = is_held_out(document.file, document.position, self.validation_fraction)
            (selection.validation if held_out else selection.train).append(cleaned)
            selection.funnel.keep(cleaned, size, held_out=held_out)
        return selection


def _marked(piece: Piece) -> Iterator[tuple[Document, Rejection | None]]:
    """The documents of a piece, and the rejection on those that are duplicates."""
    if not isinstance(piece, DistinctPiece):
        return ((document, None) for document in piece.documents())
    documents = list(piece.documents())
    if len(documents) != len(piece.marks):
        raise BigtrainError(
            "a corpus has changed while it was being built",
            found=f"{len(documents)} documents in a piece",
            wanted=f"{len(piece.marks)}, as when duplicates were looked for",
            fix="start the build again when nothing writes to the corpus",
        )
    rejections = (
        replace(DUPLICATES[DuplicateMark(mark)], evidence=piece.originals.get(index, "")) if mark else None
        for index, mark in enumerate(piece.marks)
    )
    return zip(documents, rejections, strict=True)

"""Pieces of corpora whose documents are the rows of one column of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bigtrain.data.build.corpus.corpus import PIECE_BYTES, not_text
from bigtrain.data.format.documents import Document

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class RowPiece:
    """Consecutive rows of one file or dataset."""

    name: str
    first_row: int
    texts: list[str]
    extent: int
    """Its size, in the unit of `Corpus.extent`: rows, or bytes of the file."""

    def documents(self) -> Iterator[Document]:
        """A document for each row."""
        for row, text in enumerate(self.texts, start=self.first_row):
            yield Document(text, self.name, row)


def pieces_of_rows(
    batches: Iterable[tuple[Sequence[Any], int]], *, name: str, place: str, field: str
) -> Iterator[RowPiece]:
    """Rows in pieces of about PIECE_BYTES.

    Args:
        batches: values of the column, and the extent of all rows up to the last of them.
        name: name of the file or dataset, for the documents.
        place: its path, for messages.
        field: the column.

    Raises:
        BigtrainError: a value is not text.
    """
    texts: list[str] = []
    first_row = size = position = end = 0
    for values, end in batches:
        for text in values:
            if not isinstance(text, str):
                raise not_text(f"{place}: row {first_row + len(texts)}", field, text)
            texts.append(text)
            size += len(text)
        if size >= PIECE_BYTES:
            yield RowPiece(name, first_row, texts, end - position)
            first_row, position, texts, size = first_row + len(texts), end, [], 0
    if texts:
        yield RowPiece(name, first_row, texts, end - position)

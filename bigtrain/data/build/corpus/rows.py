"""Pieces of corpora whose documents are the rows of one column of text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.corpus import PIECE_BYTES, not_text
from bigtrain.data.build.corpus.files import too_long
from bigtrain.data.format.documents import Document

ROWS_AT_ONCE = 256
"""A group of pieces ends with a multiple of this many rows. The ids of all datasets depend on it."""
LARGEST_PIECE = 4 * PIECE_BYTES
"""Characters of text after which a piece ends inside its group."""
BYTES_AT_ONCE = 16 * PIECE_BYTES
"""Bytes of a column that are made into Python's texts at once."""


@dataclass(frozen=True)
class RowPiece:
    """Consecutive rows of one file or dataset."""

    name: str
    first_row: int
    texts: list[str | None]
    """None for a null, which the funnel counts."""
    metadata: list[str]
    """Of each row; empty where the source keeps none."""
    extent: int
    """Its size, in the unit of `Corpus.extent`: rows, or bytes of the file."""
    continued: bool

    def documents(self) -> Iterator[Document]:
        """A document for each row."""
        metadata = self.metadata or repeat("")
        for row, (text, kept) in enumerate(zip(self.texts, metadata, strict=False), start=self.first_row):
            yield Document(text or "", self.name, row, null=text is None, metadata=kept)


def pieces_of_rows(
    values: Iterable[Any],
    *,
    name: str,
    place: str,
    source: SourceSettings,
    extent_at: Callable[[int], int],
    metadata: Iterator[str] | None = None,
) -> Iterator[RowPiece]:
    """Rows in groups of about PIECE_BYTES, and long groups in several pieces.

    Args:
        values: those of the column.
        name: name of the file or dataset, for the documents.
        place: its path, for messages.
        source: says which field is meant, and what a null is taken for.
        extent_at: the extent of so many of the first rows.
        metadata: that of each row, where the source keeps some.

    Raises:
        BigtrainError: a value is not text, or too long.
    """
    field, limit, skip_null = source.text_field, source.max_document_bytes, source.on_null == "skip"
    texts: list[str | None] = []
    kept: list[str] = []
    first_row = row = size = size_of_group = 0
    for text in values:
        if size >= LARGEST_PIECE:
            yield RowPiece(name, first_row, texts, kept, extent_at(row) - extent_at(first_row), continued=True)
            first_row, texts, kept, size = row, [], [], 0
        if isinstance(text, str):
            if len(text) > limit or (4 * len(text) > limit and len(text.encode(errors="replace")) > limit):
                raise too_long(f"{place}: row {row}", limit)
            size += len(text)
            size_of_group += len(text)
        elif not (text is None and skip_null):
            raise not_text(f"{place}: row {row}", field, text)
        texts.append(text)
        if metadata is not None:
            kept.append(next(metadata))
        row += 1
        if row % ROWS_AT_ONCE == 0 and size_of_group >= PIECE_BYTES:
            yield RowPiece(name, first_row, texts, kept, extent_at(row) - extent_at(first_row), continued=False)
            first_row, texts, kept, size, size_of_group = row, [], [], 0, 0
    if texts:
        yield RowPiece(name, first_row, texts, kept, extent_at(row) - extent_at(first_row), continued=False)


def column_values(column: Any) -> Iterator[Any]:
    """The values of an Arrow array, or of several, one after the other.

    A dictionary of texts may stand for any number of copies, so it is expanded row by row where that is long.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        if pa.types.is_dictionary(chunk.type):
            longest = _longest(chunk.dictionary) if len(chunk.dictionary) else 0
            expanded = longest * len(chunk)
            chunk = chunk.dictionary_decode() if expanded <= BYTES_AT_ONCE else chunk
        elif pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
            expanded = pc.sum(pc.binary_length(chunk)).as_py() or 0
        else:
            expanded = chunk.nbytes
        if expanded <= BYTES_AT_ONCE:
            yield from chunk.to_pylist()
        else:
            for scalar in chunk:
                yield scalar.as_py()


def _longest(texts: Any) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(kind(texts.type) for kind in kinds):
        return int(texts.nbytes)
    return pc.max(pc.binary_length(texts)).as_py() or 0

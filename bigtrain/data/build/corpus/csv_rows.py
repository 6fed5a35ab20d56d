"""Corpus kind `csv`: rows of a table with a header, separated by commas, or by tabs in a `.tsv` file."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.compressed import SUFFIXES as COMPRESSED
from bigtrain.data.build.corpus.corpus import Corpus, corpus_of_files, find_files
from bigtrain.data.build.corpus.decoded_lines import decoded_lines
from bigtrain.data.build.corpus.files import CorpusFile
from bigtrain.data.build.corpus.json_records import reader_of
from bigtrain.data.build.corpus.records import Origin, RecordReader, pieces_of_records
from bigtrain.data.format.documents import Document

TABS = tuple(f".tsv{compressed}" for compressed in ("", *COMPRESSED))
SUFFIXES = (*(f".csv{compressed}" for compressed in ("", *COMPRESSED)), *TABS)


@dataclass(frozen=True)
class TableReader:
    """Reads the cells of a row by the names of their columns."""

    columns: tuple[str, ...]
    read: RecordReader

    def __call__(self, record: Any, origin: Origin) -> Document:
        """The document of a row. Raises BigtrainError where it has more or fewer cells than the header."""
        if len(record) != len(self.columns):
            raise BigtrainError(
                f"{origin.where} has not one cell for each column",
                found=f"{len(record)} cells: {' | '.join(record)}"[:200],
                wanted=f"{len(self.columns)} cells: {' | '.join(self.columns)}"[:300],
                fix="correct the row; a comma or line break inside a cell needs quotes around the cell",
            )
        return self.read(dict(zip(self.columns, record, strict=True)), origin)


def rows_of(file: CorpusFile, limit: int, delimiter: str) -> Iterator[tuple[int, tuple[str, ...], int]]:
    """The rows of a file that are not empty: index of the first line, cells, and size in bytes.

    Args:
        file: the file.
        limit: the most bytes of a line.
        delimiter: what separates cells. Quotes around a cell are no part of it, and it may have line breaks in them.

    Raises:
        BigtrainError: the file cannot be read, or its quotes do not match.
    """
    first = size = 0

    def lines() -> Iterator[str]:
        nonlocal size
        for line in decoded_lines(file, limit):
            size += line.size
            yield line.text

    csv.field_size_limit(limit)
    table = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(table, None)
        except csv.Error as error:
            raise BigtrainError(
                f"{file.place}:{first + 1} is no row of a table",
                found=str(error)[:200],
                wanted="cells with a delimiter between them, and quotes that end",
                fix="correct the row: a quote inside a quoted cell is written twice",
            ) from None
        if row is None:
            return
        if row:
            yield first, tuple(row), size
        first, size = table.line_num, 0


def table_pieces(source: SourceSettings, file: CorpusFile, read: RecordReader) -> Iterator[Any]:
    """The pieces of a file whose first row is a header."""
    delimiter = "\t" if file.name.lower().endswith(TABS) else ","
    rows = rows_of(file, source.max_document_bytes, delimiter)
    header = next(rows, None)
    if header is None:
        return
    yield from pieces_of_records(file, rows, TableReader(header[1], read))


def csv_rows(source: SourceSettings) -> Corpus:
    """Each row is one document, its position the index of its first line. Raises BigtrainError with file and line."""
    assert source.path is not None
    found = find_files(f"data.sources: {source.name!r}", source.path, SUFFIXES)
    read = reader_of(source)
    return corpus_of_files(
        found.files,
        lambda: (piece for file in found.files for piece in table_pieces(source, file, read)),
        found.skipped,
    )

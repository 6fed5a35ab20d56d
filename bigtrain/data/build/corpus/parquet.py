"""Corpus kind `parquet`: one row a document, the text in one column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.corpus import Corpus, corpus_of_files, find_files, missing_field
from bigtrain.data.build.corpus.files import CorpusFile, reading
from bigtrain.data.build.corpus.rows import ROWS_AT_ONCE, RowPiece, pieces_of_rows

SUFFIXES = (".parquet",)


def _pieces(file: CorpusFile, column: str) -> Iterator[RowPiece]:
    return pieces_of_rows(_batches(file, column), name=file.name, place=file.path, field=column)


def _batches(file: CorpusFile, column: str) -> Iterator[tuple[list[Any], int]]:
    """Values of a column, and the approximate offset of their end in the file, in bytes."""
    from pyarrow import parquet as pq

    with reading(file.path), file.open() as stream, pq.ParquetFile(stream) as opened:
        if column not in opened.schema_arrow.names:
            raise missing_field(file.path, column, opened.schema_arrow.names)
        rows = 0
        for batch in opened.iter_batches(ROWS_AT_ONCE, columns=[column], use_threads=False):
            rows += len(batch)
            yield batch.column(0).to_pylist(), file.size * rows // opened.metadata.num_rows


def read_rows(file: CorpusFile, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of one file, with those of `columns` that it has. Raises BigtrainError if it has none of them."""
    from pyarrow import parquet as pq

    with reading(file.path), file.open() as stream, pq.ParquetFile(stream) as opened:
        present = [column for column in columns if column in opened.schema_arrow.names]
        if not present:
            raise missing_field(file.path, columns[0], opened.schema_arrow.names)
        for batch in opened.iter_batches(ROWS_AT_ONCE, columns=present, use_threads=False):
            yield from batch.to_pylist()


def parquet(source: SourceSettings) -> Corpus:
    """Each row's `text_field` is one document, its position the row's index.

    Raises BigtrainError for what is not a Parquet file with such a column of text.
    """
    assert source.path is not None
    files = find_files(f"data.sources: {source.name!r}", source.path, SUFFIXES)
    return corpus_of_files(files, lambda: (piece for file in files for piece in _pieces(file, source.text_field)))

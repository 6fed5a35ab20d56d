"""Corpus kind `parquet`: one row a document, the text in one column or in a field of its structs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import tee
from typing import Any

from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.corpus import PIECE_BYTES, Corpus, corpus_of_files, find_files, missing_field
from bigtrain.data.build.corpus.files import CorpusFile, reading, too_long
from bigtrain.data.build.corpus.rows import ROWS_AT_ONCE, RowPiece, column_values, pieces_of_rows
from bigtrain.data.format.document_metadata import metadata_text

SUFFIXES = (".parquet",)
DICTIONARIES = ("PLAIN_DICTIONARY", "RLE_DICTIONARY")


def _pieces(file: CorpusFile, source: SourceSettings) -> Iterator[RowPiece]:
    from pyarrow import parquet as pq

    column = source.text_field
    with reading(file.place), file.open() as stream:
        about = pq.read_metadata(stream)
        paths = list(_paths(about.schema.to_arrow_schema()))
        for key, wanted in (("text_field", (column,)), ("metadata", source.metadata)):
            for path in wanted:
                if path not in paths:
                    raise missing_field(file.place, path, paths, key)
        if about.num_rows and _bytes_a_row(about, [column]) > source.max_document_bytes:
            raise too_long(f"{file.place}: a row", source.max_document_bytes)
        stream.seek(0)
        columns = list(dict.fromkeys([column, *source.metadata]))
        batches, beside = _batches(stream, about, columns), None
        if source.metadata:
            batches, copies = tee(batches)
            beside = (text for batch in copies for text in _metadata(batch, source.metadata))
        values = (value for batch in batches for value in column_values(_of(batch, column)))
        yield from pieces_of_rows(
            values,
            metadata=beside,
            name=file.name,
            place=file.place,
            source=source,
            extent_at=lambda rows: file.size * rows // about.num_rows,
        )


def _paths(fields: Any) -> Iterator[str]:
    """The names of the fields of a schema or struct, and the dotted paths of those in structs."""
    import pyarrow as pa

    for field in fields:
        yield field.name
        if pa.types.is_struct(field.type):
            yield from (f"{field.name}.{inner}" for inner in _paths(field.type))


def _of(batch: Any, path: str) -> Any:
    """The column of a path in a record batch. What is in a null is null."""
    import pyarrow.compute as pc

    if path in batch.schema.names:
        return batch.column(path)
    name, *inner = path.split(".")
    return pc.struct_field(batch.column(name), inner)


def _metadata(batch: Any, paths: Sequence[str]) -> Iterator[str]:
    """The JSON of these fields, row by row."""
    for values in zip(*(column_values(_of(batch, path)) for path in paths), strict=True):
        yield metadata_text(dict(zip(paths, values, strict=True)))


def _batches(stream: Any, about: Any, columns: Sequence[str]) -> Iterator[Any]:
    """Record batches of some columns, of about PIECE_BYTES each. Texts that a dictionary holds stay in it.

    Raises:
        EOFError: there are fewer rows than the file's metadata say.
    """
    from pyarrow import parquet as pq

    if not about.num_rows:
        return
    at_once = min(max(PIECE_BYTES // max(_bytes_a_row(about, columns), 1), 1), ROWS_AT_ONCE)
    rows = 0
    with pq.ParquetFile(stream, metadata=about, read_dictionary=_in_dictionaries(about, columns)) as opened:
        for batch in opened.iter_batches(at_once, columns=list(columns), use_threads=False):
            rows += len(batch)
            yield batch
    if rows != about.num_rows:
        raise EOFError(f"it has {rows:,} of {about.num_rows:,} rows")


def _chunks(about: Any, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Index of the row group, and metadata, of each stored chunk of some columns."""
    for group in range(about.num_row_groups):
        for index in range(about.num_columns):
            chunk = about.row_group(group).column(index)
            if chunk.path_in_schema.partition(".")[0] in columns or chunk.path_in_schema in columns:
                yield group, chunk


def _bytes_a_row(about: Any, columns: Sequence[str]) -> int:
    """Bytes of a row of some columns, before compression, in the row group with the longest rows on average."""
    sizes: dict[int, int] = {}
    for group, chunk in _chunks(about, columns):
        sizes[group] = sizes.get(group, 0) + chunk.total_uncompressed_size
    return max((size // max(about.row_group(group).num_rows, 1) for group, size in sizes.items()), default=0)


def _in_dictionaries(about: Any, columns: Sequence[str]) -> list[str]:
    """The columns of texts that some row group holds as references into a dictionary."""
    kept = (
        chunk.path_in_schema
        for _, chunk in _chunks(about, columns)
        if chunk.physical_type == "BYTE_ARRAY" and any(encoding in DICTIONARIES for encoding in chunk.encodings)
    )
    # Arrow cannot read a dictionary that is in a struct in parts.
    top = [name for name in about.schema.to_arrow_schema().names if name in columns]
    return list(dict.fromkeys(path for path in kept if path in top))


def read_rows(file: CorpusFile, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of one file, with those of `columns` that it has. Raises BigtrainError if it has none of them."""
    from pyarrow import parquet as pq

    with reading(file.place), file.open() as stream:
        about = pq.read_metadata(stream)
        names = about.schema.to_arrow_schema().names
        present = [column for column in columns if column in names]
        if not present:
            raise missing_field(file.place, columns[0], names)
        stream.seek(0)
        for batch in _batches(stream, about, present):
            for row in zip(*(column_values(column) for column in batch.columns), strict=True):
                yield dict(zip(batch.schema.names, row, strict=True))


def parquet(source: SourceSettings) -> Corpus:
    """Each row's `text_field` is one document, its position the row's index.

    Raises BigtrainError for what is not a Parquet file with such a column of text.
    """
    assert source.path is not None
    found = find_files(f"data.sources: {source.name!r}", source.path, SUFFIXES)
    return corpus_of_files(
        found.files, lambda: (piece for file in found.files for piece in _pieces(file, source)), found.skipped
    )

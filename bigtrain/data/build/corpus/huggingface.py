"""Corpus kind `huggingface`: a dataset of the `datasets` library, from the hub or a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.compressed import SUFFIXES as COMPRESSED
from bigtrain.data.build.corpus.compressed import opened
from bigtrain.data.build.corpus.corpus import PIECE_BYTES, Corpus, missing_field
from bigtrain.data.build.corpus.files import is_damage, printable, reading, unreadable
from bigtrain.data.build.corpus.local_files import find_local
from bigtrain.data.build.corpus.rows import ROWS_AT_ONCE, column_values, pieces_of_rows
from bigtrain.data.format.hashing import identity

STREAMED_ROWS_AT_ONCE = 16
"""Streamed rows are Python's texts at once; those of a stored dataset stay in their file until one is needed."""
END_OF_ARROW_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def _load(source: SourceSettings) -> Any:
    import datasets

    assert source.path is not None
    folder = Path(source.path).expanduser()
    try:
        if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            dataset = _split_of(datasets.load_from_disk(str(folder)), source)
            _require_whole(dataset)
            return dataset.to_iterable_dataset() if source.streaming else dataset
        _require_whole_archives(folder)
        path = str(folder) if folder.exists() else source.path
        return datasets.load_dataset(path, source.subset, split=source.split, streaming=source.streaming)
    except BigtrainError:
        raise
    except Exception as error:  # the library raises anything from KeyError to network errors
        if folder.is_dir() and is_damage(error):
            raise unreadable(printable(str(folder)), error) from error
        raise BigtrainError(
            f"data.sources: {source.name!r} cannot be loaded with the datasets library: "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
            found=f"path {source.path}, subset {source.subset}, split {source.split}",
            wanted="a dataset id on the hub, or a local folder",
            fix="check path, subset and split; a hub id needs the network once",
        ) from error


def _split_of(saved: Any, source: SourceSettings) -> Any:
    """A split of what `save_to_disk` wrote: one dataset, or one for each split. Neither has subsets.

    Raises:
        BigtrainError: there is no such split or subset.
    """
    several = isinstance(saved, dict)
    splits = list(saved) if several else [str(saved.split)] if saved.split else []
    default = SourceSettings.model_fields["split"].default
    if source.subset is not None or source.split not in (splits if several else [*splits, default]):
        raise BigtrainError(
            f"data.sources: {source.name!r} asks for what its saved dataset does not have",
            found="no subsets; " + (f"split {' or '.join(splits)}" if splits else "no splits"),
            wanted=f"subset {source.subset}, split {source.split}",
            fix="remove subset, and set split to one that is there; or set path to another folder",
        )
    return saved[source.split] if several else saved


def _values(dataset: Any, source: SourceSettings, place: str) -> Iterator[Any]:
    """Values of a column, in order. Raises BigtrainError if the data cannot be read."""
    field = source.text_field
    with reading(place):
        if source.streaming:
            for batch in dataset.iter(STREAMED_ROWS_AT_ONCE):
                yield from batch[field]
        else:
            for table in dataset.with_format("arrow").iter(ROWS_AT_ONCE):
                yield from column_values(table.column(field))


def _require_whole(dataset: Any) -> None:
    """Raise BigtrainError if an Arrow file of a dataset does not end as one does.

    The library takes a file that is cut between two of its parts for a shorter one.
    """
    for described in getattr(dataset, "cache_files", []):
        file = Path(described["filename"])
        with reading(printable(str(file))), file.open("rb") as stream:
            stream.seek(max(file.stat().st_size - len(END_OF_ARROW_STREAM), 0))
            if stream.read() != END_OF_ARROW_STREAM:
                raise EOFError("it lacks the mark at the end of an Arrow stream")


def _compressed_files(folder: Path) -> Iterator[Path]:
    """The compressed files in a folder that the library decompresses without looking for their end."""
    if folder.is_dir():
        for file in find_local("data.sources", str(folder))[0]:
            if file.name.lower().endswith(COMPRESSED) and file.problem is None:
                yield Path(file.path)
    elif folder.is_file() and folder.name.lower().endswith(COMPRESSED):
        yield folder


def _require_whole_archives(folder: Path) -> None:
    for file in _compressed_files(folder):
        with reading(printable(str(file))), file.open("rb") as raw, opened(raw, file.name) as stream:
            while stream.read(PIECE_BYTES):
                pass


def huggingface(source: SourceSettings) -> Corpus:
    """Each row's `text_field` is one document, its position the row's index.

    `path` is a hub id, a folder written by `save_to_disk`, or a folder of parquet, JSON or text files. Raises
    BigtrainError if the dataset cannot be loaded or has no such column.
    """
    assert source.path is not None
    dataset = _load(source)
    columns = dataset.column_names or list(next(iter(dataset), {}))  # a stream may not know them before a read
    if source.text_field not in columns:
        raise missing_field(f"data.sources: {source.name!r}", source.text_field, columns)
    dataset = dataset.select_columns([source.text_field])
    name = Path(source.path).name if Path(source.path).expanduser().exists() else source.path
    file = "/".join(part for part in (name, source.subset, source.split) if part)
    rows = None if source.streaming else len(dataset)
    return Corpus(
        stamp=identity([rows, source.path, source.subset, source.split, _content_sample(dataset, source, rows)]),
        summary="a stream of rows" if rows is None else f"{rows:,} rows",
        pieces=lambda: pieces_of_rows(
            _values(dataset, source, file), name=file, place=file, source=source, extent_at=lambda rows: rows
        ),
        extent=rows,
    )


def _content_sample(dataset: Any, source: SourceSettings, rows: int | None) -> list[object]:
    """Some rows, and the size of the underlying files: the library's own fingerprint changes from load to load.

    Only the first rows of a stream are available.
    """
    if rows is None:
        return [row[source.text_field] for row in dataset.take(16)]
    sample = sorted({rows * i // 16 for i in range(16)} & set(range(rows)))
    return [dataset[row][source.text_field] for row in sample] + [dataset.dataset_size]

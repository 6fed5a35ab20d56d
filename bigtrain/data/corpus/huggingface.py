"""Corpus kind `huggingface`: a dataset of the `datasets` library, from the hub or a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.config.data_settings import SourceSettings
from bigtrain.config.errors import BigtrainError
from bigtrain.data.corpus.corpus import PIECE_BYTES, Corpus, missing_field, not_text
from bigtrain.data.documents import Document
from bigtrain.data.hashing import identity

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class _Rows:
    file: str
    first_row: int
    texts: list[str]

    @property
    def extent(self) -> int:
        return len(self.texts)

    def documents(self) -> Iterator[Document]:
        for row, text in enumerate(self.texts, start=self.first_row):
            yield Document(text, self.file, row)


def _load(source: SourceSettings) -> Any:
    import datasets

    assert source.path is not None
    folder = Path(source.path).expanduser()
    try:
        if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            dataset = datasets.load_from_disk(str(folder))
            return dataset[source.split] if isinstance(dataset, datasets.DatasetDict) else dataset
        path = str(folder) if folder.exists() else source.path
        return datasets.load_dataset(path, source.subset, split=source.split)
    except Exception as error:  # the library raises anything from KeyError to network errors
        raise BigtrainError(
            f"data.sources: {source.name!r} cannot be loaded with the datasets library: "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
            found=f"path {source.path}, subset {source.subset}, split {source.split}",
            wanted="a dataset id on the hub, or a local folder",
            fix="check path, subset and split; a hub id needs the network once",
        ) from error


def _pieces(dataset: Any, source: SourceSettings, file: str) -> Iterator[_Rows]:
    texts: list[str] = []
    first_row = size = 0
    for start in range(0, len(dataset), ROWS_AT_ONCE):
        for text in dataset[start : start + ROWS_AT_ONCE][source.text_field]:
            if not isinstance(text, str):
                raise not_text(f"{file}: row {first_row + len(texts)}", source.text_field, text)
            texts.append(text)
            size += len(text)
        if size >= PIECE_BYTES:
            yield _Rows(file, first_row, texts)
            first_row, texts, size = first_row + len(texts), [], 0
    if texts:
        yield _Rows(file, first_row, texts)


def huggingface(source: SourceSettings) -> Corpus:
    """Each row's `text_field` is one document, its position the row's index.

    `path` is a hub id, a folder written by `save_to_disk`, or a folder of parquet, JSON or text files. Raises
    BigtrainError where the dataset cannot be loaded or has no such column.
    """
    assert source.path is not None
    dataset = _load(source)
    if source.text_field not in dataset.column_names:
        raise missing_field(f"data.sources: {source.name!r}", source.text_field, dataset.column_names)
    dataset = dataset.select_columns([source.text_field])
    name = Path(source.path).name if Path(source.path).expanduser().exists() else source.path
    file = "/".join(part for part in (name, source.subset, source.split) if part)
    return Corpus(
        stamp=identity([len(dataset), source.path, source.subset, source.split, _content_sample(dataset, source)]),
        summary=f"{len(dataset):,} rows",
        pieces=lambda: _pieces(dataset, source, file),
        extent=len(dataset),
    )


def _content_sample(dataset: Any, source: SourceSettings) -> list[object]:
    """Sizes of the underlying files and some rows: the library's own fingerprint changes from load to load."""
    rows = sorted({len(dataset) * i // 16 for i in range(16)} & set(range(len(dataset))))
    return [dataset[row][source.text_field] for row in rows] + [dataset.dataset_size]

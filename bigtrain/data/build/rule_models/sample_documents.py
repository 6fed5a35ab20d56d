"""The documents that a model of a rule learns from, or is tried on: files of text, JSON lines or Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus import read_documents
from bigtrain.data.build.corpus.corpus import find_files
from bigtrain.data.build.corpus.jsonl import SUFFIXES as JSON_LINES
from bigtrain.data.build.corpus.parquet import SUFFIXES as PARQUET
from bigtrain.data.format.documents import Document

KINDS = {"jsonl": JSON_LINES, "parquet": PARQUET}
"""The kinds of source by their suffixes; any other file is one text."""


def sample_documents(paths: Sequence[str], text_field: str, where: str) -> Iterator[Document]:
    """The documents of some paths that have text, in the order of the paths, then of the names of files.

    Args:
        paths: files, folders or globs, on this machine or at URLs, as the path of a source.
        text_field: the field or column of the text, in JSON lines and Parquet.
        where: the option that gives the paths, for messages.

    Raises:
        BigtrainError: a path has no files, or one of them cannot be read.
    """
    for path in paths:
        for file in find_files(where, path).files:
            name = file.name.lower()
            kind = next((kind for kind, suffixes in KINDS.items() if name.endswith(suffixes)), "text")
            of_kind = {} if kind == "text" else {"text_field": text_field, "on_null": "skip"}
            source = SourceSettings.model_validate({"name": "sample", "kind": kind, "path": file.path, **of_kind})
            yield from (document for document in read_documents(source) if document.text.strip())


def require_documents(found: int, wanted: int, where: str) -> None:
    """Raise BigtrainError where there are fewer documents than a model needs."""
    if found < wanted:
        raise BigtrainError(
            f"{where}: there are too few documents to learn from",
            found=f"{found:,} with text",
            wanted=f"{wanted:,} or more",
            fix="give more files, or check --text-field",
        )

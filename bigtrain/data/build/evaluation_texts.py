"""Reads the texts that a model is evaluated on, with the readers of the corpora."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bigtrain.base import BigtrainError
from bigtrain.config import DecontaminateSettings, SourceSettings
from bigtrain.data.build.corpus.corpus import find_files
from bigtrain.data.build.corpus.files import CorpusFile
from bigtrain.data.build.corpus.jsonl import JSON, LINES, is_json_lines, read_records
from bigtrain.data.build.corpus.parquet import SUFFIXES as PARQUET
from bigtrain.data.build.corpus.parquet import read_rows
from bigtrain.data.build.corpus.text import read_text

LONGEST: int = SourceSettings.model_fields["max_document_bytes"].default
"""Bytes that a text file, or a line of JSON, may have."""


def find_evaluation_files(settings: DecontaminateSettings) -> list[CorpusFile]:
    """The files of the paths, in the order of the paths, then of their names. Raises BigtrainError if there are
    none."""
    return [file for path in settings.paths for file in find_files("data.decontaminate", path).files]


def read_evaluation_texts(file: CorpusFile, fields: Sequence[str]) -> Iterator[str]:
    """The texts of a file: the whole of a text file, else the fields of each item that are in `fields`.

    Raises:
        BigtrainError: the file cannot be read, is of another format, or no item in it has any of the fields.
    """
    name = file.name.lower()
    if name.endswith(LINES) or (name.endswith(JSON) and is_json_lines(file, LONGEST)):
        items = read_records(file, LONGEST)
    elif name.endswith(PARQUET):
        items = read_rows(file, fields)
    elif name.endswith(JSON):
        raise BigtrainError(
            f"data.decontaminate: {file.place} is a JSON document, which is not read",
            found="one JSON document",
            wanted="text, JSON lines (also .gz, .zst, .bz2, .xz) or .parquet",
            fix=f"write one item a line: jq -c '.[]' {file.place} > {file.place}l",
        )
    else:
        yield read_text(file, LONGEST)
        return
    seen: set[str] = set()
    found = False
    for item in items:
        seen |= item.keys()
        for field in fields:
            value = item.get(field)
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    found = True
                    yield text
    if not found:
        raise BigtrainError(
            f"data.decontaminate: {file.place} has no text in any of its text_fields",
            found=", ".join(sorted(seen)) or "no items",
            wanted=" or ".join(fields),
            fix="set data.decontaminate.text_fields to the fields that hold questions, contexts and answers",
        )

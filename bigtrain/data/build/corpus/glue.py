"""Corpus kind `glue`: the tab-separated files of the GLUE tasks (Wang et al., 2019), as its download script left them.

Cells have no quotes around them. The names of the labels and their numbers are those of the `datasets` library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.compressed import SUFFIXES as COMPRESSED
from bigtrain.data.build.corpus.corpus import Corpus, corpus_of_files, find_files
from bigtrain.data.build.corpus.decoded_lines import decoded_lines
from bigtrain.data.build.corpus.files import CorpusFile
from bigtrain.data.build.corpus.records import Origin, classified, pieces_of_records
from bigtrain.data.format.documents import Document, Piece

SUFFIXES = tuple(f".tsv{compressed}" for compressed in ("", *COMPRESSED))


class GlueTask(NamedTuple):
    """The columns of a task's files."""

    texts: tuple[str, ...]
    label: str
    names: Mapping[str, str]
    """The name of each label, by what a file has for it, in the order of their numbers."""
    header: tuple[str, ...] | None = None
    """The columns of files without a header."""


def _numbered(*names: str) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


def _named(*names: str) -> dict[str, str]:
    return {name: name for name in names}


GLUE: Mapping[str, GlueTask] = {
    "cola": GlueTask(
        ("sentence",),
        "label",
        _numbered("unacceptable", "acceptable"),
        header=("source", "label", "original", "sentence"),
    ),
    "sst2": GlueTask(("sentence",), "label", _numbered("negative", "positive")),
    "mrpc": GlueTask(("#1 String", "#2 String"), "Quality", _numbered("not_equivalent", "equivalent")),
    "qqp": GlueTask(("question1", "question2"), "is_duplicate", _numbered("not_duplicate", "duplicate")),
    "mnli": GlueTask(("sentence1", "sentence2"), "gold_label", _named("entailment", "neutral", "contradiction")),
    "qnli": GlueTask(("question", "sentence"), "label", _named("entailment", "not_entailment")),
    "rte": GlueTask(("sentence1", "sentence2"), "label", _named("entailment", "not_entailment")),
    "wnli": GlueTask(("sentence1", "sentence2"), "label", _numbered("not_entailment", "entailment")),
}


@dataclass(frozen=True)
class _GlueRows:
    task: str
    columns: tuple[str, ...]
    skip_incomplete: bool

    def __call__(self, record: Any, origin: Origin) -> Document:
        about = GLUE[self.task]
        cells = dict(zip(self.columns, record, strict=False))
        missing = [column for column in (*about.texts, about.label) if column not in cells]
        if missing and self.skip_incomplete:
            return Document("", origin.name, origin.position, null=True)
        if missing:
            raise _unlike(self.task, origin.where, f"{len(record)} cells, none for {missing[0]!r}")
        label = cells[about.label].strip()
        if label not in about.names:
            raise BigtrainError(
                f"{origin.where} has no label of the GLUE task {self.task}",
                found=label[:100] or "nothing",
                wanted=" or ".join(about.names),
                fix="correct the row; name train.tsv at path and dev.tsv at held_out_path, as test.tsv has no labels",
            )
        return classified([cells[column] for column in about.texts], about.names[label], origin)


def _unlike(task: str, where: str, found: str) -> BigtrainError:
    about = GLUE[task]
    return BigtrainError(
        f"{where} is not as the files of the GLUE task {task}",
        found=found[:300],
        wanted=f"columns {', '.join((*about.texts, about.label))}, separated by tabs",
        fix="check task and file; if the file has a few incomplete rows, as QQP's, set on_null: skip in the source",
    )


def _rows(file: CorpusFile, limit: int) -> Iterator[tuple[int, tuple[str, ...], int]]:
    """Index, cells and size of each line that is not empty. Quotes are part of a cell."""
    for index, text, size in decoded_lines(file, limit):
        if text.strip():
            yield index, tuple(text.rstrip("\r\n").split("\t")), size


def _pieces(source: SourceSettings, file: CorpusFile) -> Iterator[Piece]:
    assert source.task is not None
    about = GLUE[source.task]
    rows = _rows(file, source.max_document_bytes)
    columns = about.header
    if columns is None:
        header = next(rows, None)
        columns = () if header is None else header[1]
        if not {*about.texts, about.label} <= set(columns):
            raise _unlike(source.task, f"{file.place}:1", f"columns {', '.join(columns)}")
    return pieces_of_records(file, rows, _GlueRows(source.task, columns, source.on_null == "skip"))


def glue(source: SourceSettings) -> Corpus:
    """Each row is one document of one text or two, its position the index of its line.

    Raises:
        BigtrainError: a file has other columns, or a row has no label.
    """
    assert source.path is not None
    found = find_files(f"data.sources: {source.name!r}", source.path, SUFFIXES)
    return corpus_of_files(
        found.files, lambda: (piece for file in found.files for piece in _pieces(source, file)), found.skipped
    )

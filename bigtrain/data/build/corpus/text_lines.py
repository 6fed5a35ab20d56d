"""Corpus kind `text_lines`: a text on each line of a file, and a label on each line of another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.corpus import Corpus, corpus_of_files, find_files
from bigtrain.data.build.corpus.decoded_lines import decoded_lines
from bigtrain.data.build.corpus.files import CorpusFile
from bigtrain.data.build.corpus.records import Origin, classified, label_of, pieces_of_records
from bigtrain.data.format.documents import Document


@dataclass(frozen=True)
class _LabelledLines:
    names: tuple[str, ...]
    labels: str
    """The path of the file with the labels, for messages."""

    def __call__(self, record: Any, origin: Origin) -> Document:
        text, label = record
        name = label_of(label.strip(), self.names, origin._replace(place=self.labels).where)
        return classified([text.rstrip("\r\n")], name, origin)


def _records(texts: CorpusFile, labels: CorpusFile, limit: int) -> Iterator[tuple[int, Any, int]]:
    for text, label in zip_longest(decoded_lines(texts, limit), decoded_lines(labels, limit)):
        if text is None or label is None:
            counts = [sum(1 for _ in decoded_lines(file, limit)) for file in (texts, labels)]
            raise BigtrainError(
                f"{labels.place} has not one label for each line of {texts.place}",
                found=f"{counts[1]:,} labels for {counts[0]:,} texts",
                wanted="files of as many lines",
                fix="write the labels again from where the texts came from, or correct labels_path",
            )
        yield text.number, (text.text, label.text), text.size


def text_lines(source: SourceSettings) -> Corpus:
    """Each line is one document, with the label on the same line of `labels_path`.

    Raises:
        BigtrainError: one of the paths is no single file, or the files have not as many lines.
    """
    assert source.path is not None and source.labels_path is not None
    where = f"data.sources: {source.name!r}"
    both = [(key, find_files(where, path).files) for key, path in _paths(source)]
    for key, files in both:
        if len(files) != 1:
            raise BigtrainError(
                f"{where}: {key} is not one file",
                found=f"{len(files):,} files",
                wanted="a file of texts at path, and a file of labels at labels_path",
                fix=f"name one file at {key}; give each pair of files a source of its own",
            )
    (texts,), (labels,) = (files for _, files in both)
    read = _LabelledLines(source.label_names, labels.place)
    named = [texts, replace(labels, name=f"labels/{labels.name}")]
    corpus = corpus_of_files(
        named, lambda: pieces_of_records(texts, _records(texts, labels, source.max_document_bytes), read)
    )
    return replace(corpus, extent=texts.size)


def _paths(source: SourceSettings) -> tuple[tuple[str, str], ...]:
    return ("path", str(source.path)), ("labels_path", str(source.labels_path))

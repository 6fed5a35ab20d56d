"""Corpus kind `conll`: the columns of CoNLL-2003 (Tjong Kim Sang and De Meulder, 2003).

Each line is a word, its first column, with its tag, the last one. An empty line ends a sentence, and `-DOCSTART-` an
article. Tags become BIO: where an entity begins, IOB1 writes `I-` unless it follows another one of its type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.corpus import Corpus, corpus_of_files, find_files
from bigtrain.data.build.corpus.decoded_lines import decoded_lines
from bigtrain.data.build.corpus.files import CorpusFile
from bigtrain.data.build.corpus.records import Origin, label_of, pieces_of_records, tagged
from bigtrain.data.format.documents import Document

START = "-DOCSTART-"


@dataclass(frozen=True)
class _Sentences:
    names: tuple[str, ...]

    def __call__(self, record: Any, origin: Origin) -> Document:
        words, tags = [], []
        for number, line in enumerate(record):
            own = origin._replace(position=origin.position + number)
            columns = line.split()
            if len(columns) < 2:
                raise BigtrainError(
                    f"{own.where} has no tag",
                    found=line[:100],
                    wanted="a word and its tag, the first and the last column, with blanks between columns",
                    fix="correct the line; an empty line ends a sentence",
                )
            words.append(columns[0])
            tags.append(columns[-1])
        checked = [
            label_of(tag, self.names, origin._replace(position=origin.position + number).where)
            for number, tag in enumerate(as_bio(tags))
        ]
        return tagged(words, checked, origin)


def as_bio(tags: list[str]) -> list[str]:
    """Tags of IOB1 or BIO as BIO: an entity always begins with `B-`."""
    found, before = [], "O"
    for tag in tags:
        continues = before[2:] == tag[2:] and before[:2] in ("B-", "I-")
        found.append(f"B-{tag[2:]}" if tag.startswith("I-") and not continues else tag)
        before = tag
    return found


def _sentences(file: CorpusFile, limit: int) -> Iterator[tuple[int, list[str], int]]:
    """First line, lines, and size in bytes of each sentence."""
    lines: list[str] = []
    first = size = 0
    for index, text, bytes_read in decoded_lines(file, limit):
        size += bytes_read
        if text.strip() and not text.startswith(START):
            if not lines:
                first = index
            lines.append(text.strip())
        elif lines:
            yield first, lines, size
            lines, size = [], 0
    if lines:
        yield first, lines, size


def conll(source: SourceSettings) -> Corpus:
    """Each sentence is one document, its words with blanks between them; its position is the index of its first line.

    Raises:
        BigtrainError: a line has one column alone, or a tag that the source does not name.
    """
    assert source.path is not None
    files = find_files(f"data.sources: {source.name!r}", source.path).files
    read, limit = _Sentences(source.label_names), source.max_document_bytes
    return corpus_of_files(
        files, lambda: (piece for file in files for piece in pieces_of_records(file, _sentences(file, limit), read))
    )

"""Corpus kind `jsonl`: one JSON object a line; plain, gzip or zstandard."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import zstandard

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.corpus import PIECE_BYTES, Corpus, corpus_of_files, find_files, missing_field, not_text
from bigtrain.data.build.corpus.files import CorpusFile, reading
from bigtrain.data.format.documents import Document

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True)
class _Lines:
    """Consecutive lines of one file, read and decompressed, but not parsed."""

    path: str
    name: str
    first_line: int
    lines: list[bytes]
    field: str
    extent: int
    """Bytes of the file, compressed if the file is."""

    def documents(self) -> Iterator[Document]:
        for line_index, record in self.records():
            where = f"{self.path}:{line_index + 1}"
            if not isinstance(record, dict) or self.field not in record:
                raise missing_field(where, self.field, record if isinstance(record, dict) else ())
            text = record[self.field]
            if not isinstance(text, str):
                raise not_text(where, self.field, text)
            yield Document(without_surrogates(text), self.name, line_index)

    def records(self) -> Iterator[tuple[int, Any]]:
        """The value of each line that is not blank, with its index in the file."""
        for line_index, line in enumerate(self.lines, start=self.first_line):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise BigtrainError(
                    f"{self.path}:{line_index + 1} is not JSON: {error}",
                    found=line[:80].decode(errors="replace").rstrip(),
                    wanted="one JSON object on each line",
                    fix="correct or remove that line",
                ) from None
            yield line_index, record


def without_surrogates(text: str) -> str:
    r"""Replace half of a surrogate pair (`"\ud800"`), which JSON allows but is not a character, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _decompressed(file: CorpusFile, stream: BinaryIO) -> BinaryIO:
    if file.name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(stream, "rb"))
    if file.name.endswith(".zst"):
        decompressed = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True, closefd=False)
        return io.BufferedReader(decompressed, buffer_size=1 << 20)
    return stream


def _pieces(file: CorpusFile, field: str) -> Iterator[_Lines]:
    first_line = position = 0
    with reading(file.path), file.open() as raw, _decompressed(file, raw) as stream:
        while lines := stream.readlines(PIECE_BYTES):
            yield _Lines(file.path, file.name, first_line, lines, field, raw.tell() - position)
            first_line, position = first_line + len(lines), raw.tell()


def read_records(file: CorpusFile) -> Iterator[dict[str, Any]]:
    """The JSON objects of one file. Raises BigtrainError with file and line for what is not JSON."""
    for lines in _pieces(file, ""):
        yield from (record for _, record in lines.records() if isinstance(record, dict))


def jsonl(source: SourceSettings) -> Corpus:
    """Each line's `text_field` is one document, its position the line's index.

    Raises BigtrainError with file and line for what is not a JSON object with that field.
    """
    assert source.path is not None
    files = find_files(f"data.sources: {source.name!r}", source.path, SUFFIXES)
    return corpus_of_files(files, lambda: (piece for file in files for piece in _pieces(file, source.text_field)))

"""Corpus kind `jsonl`: one JSON object a line; plain, or compressed with gzip, zstandard, bzip2 or xz."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.compressed import SUFFIXES as COMPRESSED
from bigtrain.data.build.corpus.compressed import opened
from bigtrain.data.build.corpus.corpus import PIECE_BYTES, Corpus, corpus_of_files, find_files
from bigtrain.data.build.corpus.encodings import without_mark
from bigtrain.data.build.corpus.files import CorpusFile, FoundFiles, no_files, reading, suffix_of, too_long
from bigtrain.data.build.corpus.json_records import PlainRecords, reader_of
from bigtrain.data.build.corpus.records import NOTHING, Origin, RecordReader, WithMetadata, value_at
from bigtrain.data.format.documents import Document


def _also_compressed(*suffixes: str) -> tuple[str, ...]:
    return tuple(suffix + compressed for suffix in suffixes for compressed in ("", *COMPRESSED))


LINES = _also_compressed(".jsonl", ".ndjson")
JSON = _also_compressed(".json")
"""Suffixes of JSON documents, which may be JSON lines too."""
SUFFIXES = LINES + JSON
FIRST = (".jsonl", ".jsonl.gz", ".jsonl.zst")
"""Suffixes that the first versions read."""
SPACE = b" \t\r\n"


@dataclass(frozen=True)
class _Lines:
    """Consecutive lines of one file, read and decompressed, but not parsed."""

    place: str
    name: str
    first_line: int
    lines: list[bytes]
    read: RecordReader
    extent: int
    """Bytes of the file, compressed if the file is."""
    last: bool = False
    """Whether the file ends here."""
    continued: bool = False

    def documents(self) -> Iterator[Document]:
        for line_index, record in self.records():
            yield self.read(record, Origin(self.place, self.name, line_index))

    def records(self) -> Iterator[tuple[int, Any]]:
        """The value of each line that is not blank, with its index in the file."""
        for line_index, line in enumerate(self.lines, start=self.first_line):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise self._not_json(line_index, line, error) from None
            yield line_index, record

    def _not_json(self, line_index: int, line: bytes, error: ValueError | RecursionError) -> BigtrainError:
        where = f"{self.place}:{line_index + 1}"
        found = line[:80].decode(errors="replace").rstrip()
        wanted = "one JSON object on each line"
        if isinstance(error, RecursionError):
            return BigtrainError(
                f"{where} is JSON that is nested too deeply",
                found=found,
                wanted="fields that are not nested a thousand deep",
                fix="write that record again without the field that is nested so deeply",
            )
        open_end = self.last and line is self.lines[-1] and not line.endswith(b"\n")
        if open_end and (not line.endswith(b"}") or getattr(error, "pos", 0) >= len(line.decode(errors="replace"))):
            return BigtrainError(
                f"{where} is cut off: the file ends inside a JSON object",
                found=f"... {line[-60:].decode(errors='replace')}",
                wanted="a whole file",
                fix="fetch or write the file again, then start the build again: it continues",
            )
        fix = "write the file again from where it came from, or correct that line"
        if line_index == 0 and line.strip() in (b"{", b"[{"):
            fix = f"if it is one JSON document over several lines, write an item a line: {_JQ} {self.place}"
        return BigtrainError(f"{where} is not JSON: {error}", found=found, wanted=wanted, fix=fix)


_JQ = "jq -c 'if type == \"array\" then .[] else . end'"


def _pieces(file: CorpusFile, limit: int, read: RecordReader) -> Iterator[_Lines]:
    first_line = position = 0
    with reading(file.place), file.open() as raw, opened(raw, file.name) as stream:
        groups = _groups(stream, file.place, limit)
        lines = next(groups, None)
        while lines is not None:
            later = next(groups, None)
            now = raw.tell()
            extent, last = now - position, later is None
            yield _Lines(file.place, file.name, first_line, lines, read, extent, last=last)
            first_line, position, lines = first_line + len(lines), now, later
        file.require_whole(raw.tell())


def _groups(stream: BinaryIO, place: str, limit: int) -> Iterator[list[bytes]]:
    """The lines of a file, about PIECE_BYTES at a time: as `readlines(PIECE_BYTES)`, but no line above a limit."""
    lines: list[bytes] = []
    size = number = 0
    while line := stream.readline(limit + 2):  # one for the line break, and one more
        if number == 0:
            line = _start(line, place)
        number += 1
        if len(line) > limit + line.endswith(b"\n"):
            raise too_long(f"{place}:{number}", limit)
        lines.append(line)
        size += len(line)
        if size > PIECE_BYTES:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


def _start(line: bytes, place: str) -> bytes:
    """The first line without the byte order mark. Raises BigtrainError for another encoding, or a JSON array."""
    line = without_mark(line, place)
    if line.lstrip(SPACE).startswith(b"["):
        raise BigtrainError(
            f"{place} is a JSON array, not JSON lines",
            found=line[:80].decode(errors="replace").rstrip(),
            wanted="one JSON object on each line",
            fix=f"write one item a line: jq -c '.[]' {place} > items.jsonl",
        )
    return line


def read_records(file: CorpusFile, limit: int) -> Iterator[dict[str, Any]]:
    """The JSON objects of one file.

    Args:
        file: the file.
        limit: the most bytes that a line may have.

    Raises:
        BigtrainError: a line is no JSON object, with file and line.
    """
    for lines in _pieces(file, limit, PlainRecords((), skip_null=False)):
        for line_index, record in lines.records():
            if not isinstance(record, dict):
                raise BigtrainError(
                    f"{file.place}:{line_index + 1} is not a JSON object",
                    found=f"a JSON {'array' if isinstance(record, list) else type(record).__name__}",
                    wanted="one JSON object on each line",
                    fix="write each item as an object with named fields",
                )
            yield record


def is_json_lines(file: CorpusFile, limit: int, fields: tuple[str, ...] = ()) -> bool:
    """Whether the first line of a file is a whole JSON object, with one of `fields` if some are given.

    Raises:
        BigtrainError: the file cannot be read.
    """
    with reading(file.place), file.open() as raw, opened(raw, file.name) as stream:
        line = stream.readline(limit + 1)
        while line and not line.strip():
            line = stream.readline(limit + 1)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and (not fields or any(value_at(record, field) is not NOTHING for field in fields))


def find_json_lines(source: SourceSettings, path: str, fields: tuple[str, ...]) -> FoundFiles:
    """The files of a path, and a count of those in a folder that are not JSON lines.

    In a folder, a file named `.json` counts if its first line is an object with one of the fields.
    """
    where = f"data.sources: {source.name!r}"
    found = find_files(where, path, SUFFIXES, before=FIRST)
    if not found.in_folder:
        return found
    files, skipped = [], Counter(found.skipped)
    for file in found.files:
        uncertain = file.name.lower().endswith(JSON)
        if uncertain and not is_json_lines(file, source.max_document_bytes, fields):
            skipped[suffix_of(file.name)] += 1
        else:
            files.append(file)
    if not files:
        raise no_files(where, path, SUFFIXES, skipped)
    return FoundFiles(files, skipped, in_folder=True)


def corpus_of_lines(source: SourceSettings, read: RecordReader, fields: tuple[str, ...]) -> Corpus:
    """The corpus of the JSON lines at a source's path.

    Args:
        source: the source.
        read: makes documents of records.
        fields: of which a record in a `.json` file of a folder has one.
    """
    assert source.path is not None
    found = find_json_lines(source, source.path, fields)
    return corpus_of_files(
        found.files,
        lambda: (piece for file in found.files for piece in _pieces(file, source.max_document_bytes, read)),
        found.skipped,
    )


def jsonl(source: SourceSettings) -> Corpus:
    """Each line is one document, its position the line's index.

    Raises BigtrainError with file and line for what is not a JSON object with the fields of the source.
    """
    fields = source.text_field if source.tokens_field is None else source.tokens_field
    read = reader_of(source)
    return corpus_of_lines(source, WithMetadata(read, source.metadata) if source.metadata else read, (fields,))

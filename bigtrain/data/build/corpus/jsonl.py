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
from bigtrain.data.build.corpus.corpus import PIECE_BYTES, Corpus, corpus_of_files, find_files, missing_field, not_text
from bigtrain.data.build.corpus.encodings import without_mark
from bigtrain.data.build.corpus.files import CorpusFile, FoundFiles, no_files, reading, suffix_of, too_long
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
    field: str
    target: str | None
    """The field of the target of a pair."""
    extent: int
    """Bytes of the file, compressed if the file is."""
    skip_null: bool = False
    last: bool = False
    """Whether the file ends here."""
    continued: bool = False

    def documents(self) -> Iterator[Document]:
        for line_index, record in self.records():
            where = f"{self.place}:{line_index + 1}"
            texts, null = [], False
            for field in (self.field,) if self.target is None else (self.field, self.target):
                if not isinstance(record, dict) or field not in record:
                    raise missing_field(where, field, record if isinstance(record, dict) else ())
                text = record[field]
                if isinstance(text, str):
                    texts.append(without_surrogates(text))
                elif text is None and self.skip_null:
                    null = True
                else:
                    raise not_text(where, field, text)
            if null:
                yield Document("", self.name, line_index, null=True)
            elif self.target is None:
                yield Document(texts[0], self.name, line_index)
            else:
                yield Document.of_parts(tuple(texts), self.name, line_index)

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


def without_surrogates(text: str) -> str:
    r"""Replace half of a surrogate pair (`"\ud800"`), which JSON allows but is not a character, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _pieces(
    file: CorpusFile, field: str, limit: int, *, target: str | None = None, skip_null: bool = False
) -> Iterator[_Lines]:
    first_line = position = 0
    with reading(file.place), file.open() as raw, opened(raw, file.name) as stream:
        groups = _groups(stream, file.place, limit)
        lines = next(groups, None)
        while lines is not None:
            later = next(groups, None)
            now = raw.tell()
            extent, last = now - position, later is None
            yield _Lines(file.place, file.name, first_line, lines, field, target, extent, skip_null, last=last)
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
    for lines in _pieces(file, "", limit):
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
    return isinstance(record, dict) and (not fields or any(field in record for field in fields))


def find_json_lines(where: str, source: SourceSettings) -> FoundFiles:
    """The files of a source, and a count of those in its folder that are not JSON lines.

    In a folder, a file named `.json` counts if its first line is an object with the field of the text.
    """
    assert source.path is not None
    found = find_files(where, source.path, SUFFIXES, before=FIRST)
    if not found.in_folder:
        return found
    files, skipped = [], Counter(found.skipped)
    for file in found.files:
        uncertain = file.name.lower().endswith(JSON)
        if uncertain and not is_json_lines(file, source.max_document_bytes, (source.text_field,)):
            skipped[suffix_of(file.name)] += 1
        else:
            files.append(file)
    if not files:
        raise no_files(where, source.path, SUFFIXES, skipped)
    return FoundFiles(files, skipped, in_folder=True)


def jsonl(source: SourceSettings) -> Corpus:
    """Each line's `text_field` is one document, its position the line's index.

    Raises BigtrainError with file and line for what is not a JSON object with that field.
    """
    found = find_json_lines(f"data.sources: {source.name!r}", source)

    def pieces() -> Iterator[_Lines]:
        for file in found.files:
            yield from _pieces(
                file,
                source.text_field,
                source.max_document_bytes,
                target=source.target_field,
                skip_null=source.on_null == "skip",
            )

    return corpus_of_files(found.files, pieces, found.skipped)

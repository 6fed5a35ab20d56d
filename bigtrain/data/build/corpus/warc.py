"""Corpus kind `warc`: web archives, with pages (WARC) or their texts (WET), as of Common Crawl; ISO 28500.

Each record of a page or a text is one document, its position the index of the record in its file. A page without a
text, or too long a one, is counted in the funnel. A record is

    WARC/1.0                 version
    WARC-Type: response      header lines; Content-Length is needed
                             an empty line
    ...                      so many bytes
                             two empty lines

The process that lists the pieces frames the records; worker processes find the text of each page (web_pages.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import BinaryIO, NamedTuple

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.compressed import SUFFIXES as COMPRESSED
from bigtrain.data.build.corpus.compressed import opened
from bigtrain.data.build.corpus.corpus import PIECE_BYTES, Corpus, corpus_of_files, find_files
from bigtrain.data.build.corpus.files import CorpusFile, reading
from bigtrain.data.build.corpus.web_pages import TOO_LONG, NotAPageError, text_of_response
from bigtrain.data.format.document_metadata import metadata_text
from bigtrain.data.format.documents import Document
from bigtrain.data.format.hashing import identity

SUFFIXES = tuple(f"{suffix}{compressed}" for suffix in (".warc", ".wet") for compressed in ("", *COMPRESSED))
PAGE, TEXT = "response", "conversion"
"""The types of records that are documents."""
KEPT = {"url": "warc-target-uri", "date": "warc-date", "language": "warc-identified-content-language"}
"""The headers of the metadata that a source may keep."""
VERSION = b"WARC/"
LONGEST_LINE, MOST_LINES = 1 << 16, 1000
"""Of the headers of a record."""
READ_BYTES = 1 << 20
EXTRACTOR = "trafilatura"


class WebRecord(NamedTuple):
    """A record of a web archive that is a document."""

    position: int
    """Its index among all records of the file."""
    page: bool
    """Whether it is a response with a page; otherwise it is the text of one."""
    content: bytes | None
    """None if it is too long."""
    headers: Mapping[str, str]
    """Those of KEPT, by their names in lower case."""


@dataclass(frozen=True)
class _WebRecords:
    name: str
    records: list[WebRecord]
    limit: int
    metadata: tuple[str, ...]
    extent: int
    continued: bool = False

    def documents(self) -> Iterator[Document]:
        for record in self.records:
            text, reason = "", None
            try:
                text = self._text(record)
            except NotAPageError as error:
                reason = str(error)
            kept = {name: record.headers.get(KEPT[name]) for name in self.metadata}
            metadata = metadata_text(kept) if kept else ""
            yield Document(text, self.name, record.position, metadata=metadata, unread=reason)

    def _text(self, record: WebRecord) -> str:
        if record.content is None:
            raise NotAPageError(TOO_LONG)
        if record.page:
            return text_of_response(record.content, self.limit)
        return record.content.decode(errors="replace")


def records_of(stream: BinaryIO, limit: int) -> Iterator[WebRecord]:
    """The records that are documents, from the start of an archive that is not compressed.

    Args:
        stream: the archive.
        limit: the most bytes of a record whose content is kept.

    Raises:
        EOFError: it ends inside a record.
        ValueError: it has something else than records.
    """
    position = 0
    while (headers := _headers(stream)) is not None:
        kind = headers.get("warc-type", "")
        page = kind == PAGE and headers.get("content-type", "").lower().startswith("application/http")
        size = _size(headers)
        content = _content(stream, size, keep=(page or kind == TEXT) and size <= limit)
        if page or kind == TEXT:
            yield WebRecord(position, page, content, {name: headers[name] for name in KEPT.values() if name in headers})
        position += 1


def _headers(stream: BinaryIO) -> Mapping[str, str] | None:
    """The headers of the next record, by their names in lower case; None at the end of the file."""
    line = stream.readline(LONGEST_LINE)
    while line and not line.strip(b"\r\n"):
        line = stream.readline(LONGEST_LINE)
    if not line:
        return None
    if not line.startswith(VERSION[: len(line)]):
        found = line[:60].decode(errors="replace").rstrip()
        raise ValueError(f"no record where one should start, but {found!r}; maybe the Content-Length before is wrong")
    headers: dict[str, str] = {}
    name = ""
    for _ in range(MOST_LINES):
        line = stream.readline(LONGEST_LINE)
        if not line.endswith(b"\n"):
            if len(line) < LONGEST_LINE:
                raise EOFError("it ends inside the headers of a record")
            break
        text = line.decode(errors="replace").rstrip("\r\n")
        if not text:
            return headers
        if text[0] in " \t":  # a header may go on in the next line
            headers[name] = f"{headers.get(name, '')} {text.strip()}"
            continue
        name, _, value = text.partition(":")
        name = name.strip().lower()
        headers[name] = value.strip()
    raise ValueError(f"headers of more than {MOST_LINES:,} lines, or a line of more than {LONGEST_LINE:,} bytes")


def _size(headers: Mapping[str, str]) -> int:
    size = headers.get("content-length", "none")
    if not (size.isascii() and size.isdigit()) or len(size) > 18:
        raise ValueError(f"a record with Content-Length {size[:40]}")
    return int(size)


def _content(stream: BinaryIO, size: int, *, keep: bool) -> bytes | None:
    parts: list[bytes] = []
    left = size
    while left and (data := stream.read(min(left, READ_BYTES))):
        left -= len(data)
        if keep:
            parts.append(data)
    if left:
        raise EOFError(f"it ends {left:,} bytes before the end of a record")
    return b"".join(parts) if keep else None


def _pieces(file: CorpusFile, source: SourceSettings) -> Iterator[_WebRecords]:
    limit, kept = source.max_document_bytes, source.metadata
    records: list[WebRecord] = []
    size = position = 0
    with reading(file.place), file.open() as raw, opened(raw, file.name) as stream:
        for record in records_of(stream, limit):
            records.append(record)
            size += len(record.content or b"")
            if size >= PIECE_BYTES:
                now = raw.tell()
                yield _WebRecords(file.name, records, limit, kept, now - position)
                records, size, position = [], 0, now
        file.require_whole(raw.tell())
        if records:
            yield _WebRecords(file.name, records, limit, kept, raw.tell() - position)


def warc(source: SourceSettings) -> Corpus:
    """Each page, or text of a page, is one document.

    Its stamp covers the version of the library that finds the texts of pages: another version may find others.

    Raises:
        BigtrainError: a library is missing, or a file is no whole web archive.
    """
    assert source.path is not None
    extractor = _extractor_version()
    found = find_files(f"data.sources: {source.name!r}", source.path, SUFFIXES)
    corpus = corpus_of_files(
        found.files, lambda: (piece for file in found.files for piece in _pieces(file, source)), found.skipped
    )
    return Corpus(
        identity([corpus.stamp, EXTRACTOR, extractor]),
        f"{corpus.summary}, texts by {EXTRACTOR} {extractor}",
        corpus.pieces,
        extent=corpus.extent,
        skipped=corpus.skipped,
    )


def _extractor_version() -> str:
    try:
        version("warcio")
        return version(EXTRACTOR)
    except PackageNotFoundError as error:
        raise BigtrainError(
            "data.sources: a source of kind warc needs warcio and trafilatura",
            found=f"{error.name} is not installed",
            fix="pip install 'bigtrain[warc]'",
        ) from None

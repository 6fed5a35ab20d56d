"""Corpus kind `text`: UTF-8 files, one document each; those in archives too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.archives import ArchiveMember, is_archive, members_of
from bigtrain.data.build.corpus.corpus import (
    PIECE_BYTES,
    Corpus,
    corpus_of_files,
    find_files,
    grouped_by_size,
    total_size,
)
from bigtrain.data.build.corpus.encodings import without_mark
from bigtrain.data.build.corpus.files import CorpusFile, printable
from bigtrain.data.format.documents import Document, Piece


@dataclass(frozen=True)
class _TextFiles:
    files: list[CorpusFile]
    limit: int
    continued: bool = False

    @property
    def extent(self) -> int:
        return total_size(self.files)

    def documents(self) -> Iterator[Document]:
        for file in self.files:
            yield Document(read_text(file, self.limit), file.name, 0)


@dataclass(frozen=True)
class _ArchivedTexts:
    """Consecutive members of an archive, read and not decoded."""

    place: str
    members: list[ArchiveMember]
    continued: bool = False

    @property
    def extent(self) -> int:
        return sum(member.extent for member in self.members)

    def documents(self) -> Iterator[Document]:
        for member in self.members:
            if member.content is None:
                yield Document("", member.name, 0, unread="an archive inside an archive")
            else:
                yield Document(_decoded(member.content, f"{self.place}: {printable(member.name)}"), member.name, 0)


def _archived(file: CorpusFile, limit: int, pattern: str) -> Iterator[_ArchivedTexts]:
    """The members of an archive, in pieces of about PIECE_BYTES."""
    members: list[ArchiveMember] = []
    size = 0
    for member in members_of(file, limit, pattern):
        members.append(member)
        size += len(member.content or b"")
        if size >= PIECE_BYTES:
            yield _ArchivedTexts(file.place, members)
            members, size = [], 0
    if members:
        yield _ArchivedTexts(file.place, members)


def read_text(file: CorpusFile, limit: int) -> str:
    """The text of a file, without a byte order mark.

    Args:
        file: the file.
        limit: the most bytes that it may have.

    Raises:
        BigtrainError: it is not UTF-8, too long, or cannot be read.
    """
    return _decoded(file.read(limit), file.place)


def _decoded(content: bytes, place: str) -> str:
    try:
        return without_mark(content, place).decode()
    except UnicodeDecodeError as error:
        raise BigtrainError(
            f"{place} is not UTF-8 text",
            found=f"byte 0x{error.object[error.start]:02x} at offset {error.start:,}",
            wanted="UTF-8",
            fix="convert the file, or narrow the path to the text files with a glob such as 'corpus/**/*.txt'; "
            "inside archives, narrow `members`",
        ) from None


def text(source: SourceSettings) -> Corpus:
    """Every file of `path` is one document, and every file of an archive. Raises BigtrainError for what is not
    UTF-8."""
    assert source.path is not None
    files = find_files(f"data.sources: {source.name!r}", source.path).files
    limit, pattern = source.max_document_bytes, source.members

    def pieces() -> Iterator[Piece]:
        for archived, of_kind in groupby(files, is_archive):
            if archived:
                yield from (piece for file in of_kind for piece in _archived(file, limit, pattern))
            else:
                yield from (_TextFiles(group, limit) for group in grouped_by_size(of_kind))

    return corpus_of_files(files, pieces)

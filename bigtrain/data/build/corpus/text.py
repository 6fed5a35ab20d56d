"""Corpus kind `text`: UTF-8 files, one document each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.corpus import Corpus, corpus_of_files, find_files, grouped_by_size, total_size
from bigtrain.data.build.corpus.encodings import without_mark
from bigtrain.data.build.corpus.files import CorpusFile
from bigtrain.data.format.documents import Document


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


def read_text(file: CorpusFile, limit: int) -> str:
    """The text of a file, without a byte order mark.

    Args:
        file: the file.
        limit: the most bytes that it may have.

    Raises:
        BigtrainError: it is not UTF-8, too long, or cannot be read.
    """
    content = without_mark(file.read(limit), file.place)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BigtrainError(
            f"{file.place} is not UTF-8 text",
            found=f"byte 0x{error.object[error.start]:02x} at offset {error.start:,}",
            wanted="UTF-8",
            fix="convert the file, or narrow the path to the text files with a glob such as 'corpus/**/*.txt'",
        ) from None


def text(source: SourceSettings) -> Corpus:
    """Every file of `path` is one document. Raises BigtrainError for a file that is not UTF-8."""
    assert source.path is not None
    files = find_files(f"data.sources: {source.name!r}", source.path).files
    limit = source.max_document_bytes
    return corpus_of_files(files, lambda: (_TextFiles(group, limit) for group in grouped_by_size(files)))

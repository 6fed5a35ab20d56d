"""Corpus kind `imdb`: reviews in folders `pos` and `neg` (Maas et al., 2011, the Large Movie Review Dataset)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.corpus import Corpus, corpus_of_files, find_files, grouped_by_size, total_size
from bigtrain.data.build.corpus.files import CorpusFile, describe_skipped, suffix_of
from bigtrain.data.build.corpus.records import Origin, classified
from bigtrain.data.build.corpus.text import read_text
from bigtrain.data.format.documents import Document

NAMES = ("neg", "pos")
"""The folders, which are the classes."""


@dataclass(frozen=True)
class _Reviews:
    files: list[CorpusFile]
    limit: int
    continued: bool = False

    @property
    def extent(self) -> int:
        return total_size(self.files)

    def documents(self) -> Iterator[Document]:
        for file in self.files:
            text = read_text(file, self.limit)
            yield classified([text], PurePosixPath(file.name).parent.name, Origin(file.place, file.name, 0))


def imdb(source: SourceSettings) -> Corpus:
    """Every file in a folder `pos` or `neg` is one document; others, such as those in `unsup`, are skipped.

    Raises:
        BigtrainError: there is none in one of the two folders.
    """
    assert source.path is not None
    where = f"data.sources: {source.name!r}"
    found = find_files(where, source.path, (".txt",))
    files = [file for file in found.files if PurePosixPath(file.name).parent.name in NAMES]
    skipped = Counter(found.skipped) + Counter(suffix_of(file.name) for file in found.files if file not in files)
    counts = Counter(PurePosixPath(file.name).parent.name for file in files)
    if missing := [name for name in NAMES if not counts[name]]:
        raise BigtrainError(
            f"{where} finds no reviews in a folder {missing[0]!r}",
            found=f"{len(files):,} reviews in the other one; {describe_skipped(skipped)}",
            wanted="folders pos and neg with a .txt file for each review",
            fix="set path to the folder above the two, such as aclImdb/train, and held_out_path to aclImdb/test",
        )
    return corpus_of_files(
        files, lambda: (_Reviews(group, source.max_document_bytes) for group in grouped_by_size(files)), skipped
    )

"""Tokenizes pieces of a corpus, in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bigtrain.base import BigtrainError
from bigtrain.data.build.filters import Filters
from bigtrain.data.build.funnel import Funnel
from bigtrain.data.build.selection import SelectDocuments
from bigtrain.data.build.workers import note
from bigtrain.data.format.documents import Document, Piece, document_id
from bigtrain.data.format.shards import TokenizedDocuments
from bigtrain.data.format.tokenizer import end_of_text_id, load_tokenizer, vocabulary_size

CHARACTERS_AT_ONCE = 1 << 20
"""Characters of text that are encoded at once, or one document."""


@dataclass(frozen=True)
class TokenizedPiece:
    """A piece of a corpus, cleaned, split and tokenized."""

    train: TokenizedDocuments
    validation: TokenizedDocuments
    funnel: Funnel
    extent: int
    """Size of the piece, in the unit of `Corpus.extent`."""
    continued: bool
    """Whether the next piece belongs to the same group."""


@dataclass(frozen=True)
class TokenizePiece:
    """Reads, cleans and tokenizes one piece; it is pickled for the worker processes."""

    source: str
    filters: Filters
    tokenizer_file: Path
    end_of_text: str
    validation_fraction: float

    def __call__(self, piece: Piece) -> TokenizedPiece:
        """Select the documents of the piece, and tokenize both splits."""
        selection = SelectDocuments(self.filters, self.validation_fraction)(piece)
        train, validation = self._tokenize(selection.train), self._tokenize(selection.validation)
        selection.funnel.tokens = len(train.tokens) + len(validation.tokens)
        return TokenizedPiece(train, validation, selection.funnel, piece.extent, piece.continued)

    def _tokenize(self, documents: list[Document]) -> TokenizedDocuments:
        tokenizer, end, vocabulary = _load(self.tokenizer_file, self.end_of_text)
        dtype = token_dtype(vocabulary)
        encoded = _encoded(tokenizer, [document for document in documents if document.ids is None])
        arrays = [
            np.array([*next(encoded), end], dtype) if document.ids is None else _closed(document, end, vocabulary)
            for document in documents
        ]
        return TokenizedDocuments(
            tokens=np.concatenate(arrays) if arrays else np.empty(0, dtype),
            lengths=[len(array) for array in arrays],
            ids=[document_id(self.source, document) for document in documents],
            files=[document.file for document in documents],
            positions=[document.position for document in documents],
        )


def _encoded(tokenizer: Tokenizer, documents: list[Document]) -> Iterator[list[int]]:
    """The token ids of each text. An encoding takes some 100 bytes for each byte of text, so few are held at once."""
    start = 0
    while start < len(documents):
        end = start + 1
        size = len(documents[start].text)
        while end < len(documents) and size + len(documents[end].text) <= CHARACTERS_AT_ONCE:
            size += len(documents[end].text)
            end += 1
        group = documents[start:end]
        note(max(group, key=lambda document: len(document.text)))
        for encoding in tokenizer.encode_batch_fast([document.text for document in group], add_special_tokens=False):
            yield encoding.ids
        start = end


def token_dtype(vocabulary: int) -> np.dtype[np.unsignedinteger]:
    """The narrowest little-endian type of format 1 that holds ids below `vocabulary`."""
    return np.dtype("<u2") if vocabulary <= 1 << 16 else np.dtype("<u4")


def _closed(document: Document, end: int, vocabulary: int) -> npt.NDArray[np.unsignedinteger]:
    """The token ids of a document, followed by the end-of-text token if they do not end with it."""
    assert document.ids is not None
    ids = np.frombuffer(document.ids, "<u4")
    if (beyond := np.flatnonzero(ids >= vocabulary)).size:
        raise BigtrainError(
            f"document {document.position} of {document.file} has a token id that the tokenizer does not know",
            found=f"id {ids[beyond[0]]} as token {beyond[0]} of {len(ids)}",
            wanted=f"ids below {vocabulary}, the size of the vocabulary",
            fix="set data.tokenizer.path to the tokenizer that these ids were made with",
        )
    closing = [] if ids[-1] == end else [end]
    return np.concatenate((ids, closing)).astype(token_dtype(vocabulary))


@lru_cache(maxsize=1)
def _load(file: Path, end_of_text: str) -> tuple[Tokenizer, int, int]:
    """A tokenizer, the id of its end-of-text token and the size of its vocabulary."""
    tokenizer = load_tokenizer(file)
    return tokenizer, end_of_text_id(tokenizer, end_of_text), vocabulary_size(tokenizer)

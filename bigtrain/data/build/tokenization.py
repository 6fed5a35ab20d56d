"""Tokenizes pieces of a corpus, in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from bigtrain.data.format.tokenizer import DataTokenizer
from bigtrain.data.format.tokenizer_content import one_error

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
    directory: Path
    """The data folder, which has the tokenizer."""
    identity: str
    """What distinguishes its tokenizer from one that was there before."""
    validation_fraction: float

    def __call__(self, piece: Piece) -> TokenizedPiece:
        """Select the documents of the piece, and tokenize both splits."""
        selection = SelectDocuments(self.filters, self.validation_fraction)(piece)
        train, validation = self._tokenize(selection.train), self._tokenize(selection.validation)
        selection.funnel.tokens = len(train.tokens) + len(validation.tokens)
        return TokenizedPiece(train, validation, selection.funnel, piece.extent, piece.continued)

    def _tokenize(self, documents: list[Document]) -> TokenizedDocuments:
        closing = _load(self.directory, self.identity)
        encodings = _encoded(closing.tokenizer, list(_texts(documents)))
        arrays, labels = [], []
        for document in documents:
            if document.ids is not None:
                arrays.append(closing.around(document, np.frombuffer(document.ids, "<u4")))
                continue
            parts = [next(encodings) for _ in document.parts or (document.text,)]
            arrays.append(closing.around(document, np.concatenate(parts)))
            if document.parts:
                labels.append(closing.numbers([len(part) for part in parts]))
        return TokenizedDocuments(
            tokens=np.concatenate(arrays) if arrays else np.empty(0, token_dtype(closing.vocabulary)),
            labels=np.concatenate(labels) if labels else np.empty(0, np.int8),
            lengths=[len(array) for array in arrays],
            ids=[document_id(self.source, document) for document in documents],
            files=[document.file for document in documents],
            positions=[document.position for document in documents],
        )


@dataclass(frozen=True)
class _Enclosed:
    """Puts ids between the tokens that a document begins and ends with."""

    tokenizer: Tokenizer
    begin: npt.NDArray[np.unsignedinteger]
    end: npt.NDArray[np.unsignedinteger]
    """[1]"""
    vocabulary: int

    def around(self, document: Document, ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.unsignedinteger]:
        """The token ids of a document. Tokens that begin or end it are added where it does not have them.

        Raises:
            BigtrainError: an id is not in the vocabulary, or the end-of-text token is inside the document.
        """
        if (beyond := np.flatnonzero(ids >= self.vocabulary)).size:
            raise BigtrainError(
                f"document {document.position} of {document.file} has a token id that the tokenizer does not know",
                found=f"id {ids[beyond[0]]} as token {beyond[0]} of {len(ids)}",
                wanted=f"ids below {self.vocabulary}, the size of the vocabulary",
                fix="set data.tokenizer.path to the tokenizer that these ids were made with",
            )
        first, last = 0, len(ids)
        if document.ids is not None:
            first = len(self.begin) if np.array_equal(ids[: len(self.begin)], self.begin) else 0
            last -= int(last > first and ids[-1] == self.end[0])
        text = ids[first:last]
        if (inside := np.flatnonzero(text == self.end[0])).size:
            raise BigtrainError(
                f"document {document.position} of {document.file} has the end-of-text token inside",
                found=f"id {self.end[0]} as token {first + inside[0]} of {len(ids)}",
                wanted="the end-of-text token at the end of a document alone",
                fix="split the document there, or set data.tokenizer.end_of_text to the token that ends documents",
            )
        return np.concatenate((self.begin, text.astype(self.begin.dtype), self.end))

    def numbers(self, lengths: list[int]) -> npt.NDArray[np.int8]:
        """The number of the part that each token of a document is in. What it begins with belongs to the first, and
        what it ends with to the last.

        Args:
            lengths: tokens of each part.
        """
        lengths = [len(self.begin) + lengths[0], *lengths[1:-1], lengths[-1] + 1]
        return np.repeat(np.arange(len(lengths), dtype=np.int8), lengths)


def _texts(documents: list[Document]) -> Iterator[Document]:
    """The texts to encode: of a document of several parts, each one."""
    for document in documents:
        if document.ids is None:
            yield from (replace(document, text=part) for part in document.parts) if document.parts else (document,)


def _encoded(tokenizer: Tokenizer, documents: list[Document]) -> Iterator[npt.NDArray[np.uint32]]:
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
        yield from _encode(tokenizer, group)
        start = end


def _encode(tokenizer: Tokenizer, documents: list[Document]) -> list[npt.NDArray[np.uint32]]:
    """The ids of texts. Raises BigtrainError, which names the document, where the tokenizer cannot encode one."""
    try:
        encodings = tokenizer.encode_batch_fast([each.text for each in documents], add_special_tokens=False)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:  # the library does not say which; a panic of it is no Exception
        return [_encode_one(tokenizer, document) for document in documents]
    return [np.array(encoding.ids, np.uint32) for encoding in encodings]


def _encode_one(tokenizer: Tokenizer, document: Document) -> npt.NDArray[np.uint32]:
    with one_error(
        f"document {document.position} of {document.file} cannot be encoded",
        found=ascii(document.text[:80]),
        wanted="a text that the tokenizer has tokens for",
        fix="use a tokenizer that has a token for unknown characters, or remove the document",
    ):
        return np.array(tokenizer.encode(document.text, add_special_tokens=False).ids, np.uint32)


def token_dtype(vocabulary: int) -> np.dtype[np.unsignedinteger]:
    """The narrowest little-endian type of format 1 that holds ids below `vocabulary`."""
    return np.dtype("<u2") if vocabulary <= 1 << 16 else np.dtype("<u4")


@lru_cache(maxsize=1)
def _load(directory: Path, identity: str) -> _Enclosed:
    data = DataTokenizer.open(directory)
    dtype = token_dtype(data.vocabulary_size)
    begin, end = np.array(data.begin_of_text.ids, dtype), np.array([data.end_id], dtype)
    return _Enclosed(data.for_documents(), begin, end, data.vocabulary_size)

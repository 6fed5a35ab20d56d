"""Pieces of a corpus into token ids: what a worker process does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bigtrain.config.cleaning import CleanStep
from bigtrain.data.documents import Document, Piece, document_id
from bigtrain.data.funnel import Funnel
from bigtrain.data.selection import SelectDocuments
from bigtrain.data.tokenizer import end_of_text_id, load_tokenizer, vocabulary_size


@dataclass(frozen=True)
class TokenizedDocuments:
    """Consecutive documents of one split. Each ends with the end-of-text token."""

    tokens: npt.NDArray[np.unsignedinteger]
    """Token ids of all documents, one after the other: u16 where the vocabulary allows, else u32."""
    lengths: list[int]
    ids: list[bytes]
    files: list[str]
    positions: list[int]


@dataclass(frozen=True)
class TokenizedPiece:
    """A piece of a corpus, cleaned, split and tokenized."""

    train: TokenizedDocuments
    validation: TokenizedDocuments
    funnel: Funnel


@dataclass(frozen=True)
class TokenizePiece:
    """Reads, cleans and tokenizes one piece; this object travels to the worker processes."""

    source: str
    rules: tuple[CleanStep, ...]
    tokenizer_file: Path
    end_of_text: str
    validation_fraction: float

    def __call__(self, piece: Piece) -> TokenizedPiece:
        """Select the piece's documents and tokenize those of either split."""
        selection = SelectDocuments(self.rules, self.validation_fraction)(piece)
        train, validation = self._tokenize(selection.train), self._tokenize(selection.validation)
        selection.funnel.tokens = len(train.tokens) + len(validation.tokens)
        return TokenizedPiece(train, validation, selection.funnel)

    def _tokenize(self, documents: list[Document]) -> TokenizedDocuments:
        tokenizer, end, dtype = _load(self.tokenizer_file, self.end_of_text)
        encodings = tokenizer.encode_batch_fast([d.text for d in documents], add_special_tokens=False)
        arrays = [np.array([*encoding.ids, end], dtype) for encoding in encodings]
        return TokenizedDocuments(
            tokens=np.concatenate(arrays) if arrays else np.empty(0, dtype),
            lengths=[len(array) for array in arrays],
            ids=[document_id(self.source, document) for document in documents],
            files=[document.file for document in documents],
            positions=[document.position for document in documents],
        )


def token_dtype(vocabulary: int) -> np.dtype[np.unsignedinteger]:
    """The narrowest little-endian type of format 1 that holds ids below `vocabulary`."""
    return np.dtype("<u2") if vocabulary <= 1 << 16 else np.dtype("<u4")


@lru_cache(maxsize=1)
def _load(file: Path, end_of_text: str) -> tuple[Tokenizer, int, np.dtype[np.unsignedinteger]]:
    tokenizer = load_tokenizer(file)
    return tokenizer, end_of_text_id(tokenizer, end_of_text), token_dtype(vocabulary_size(tokenizer))

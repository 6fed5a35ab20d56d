"""Tokenizes pieces of a corpus, in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from bigtrain.base import BigtrainError
from bigtrain.data.build.clean import NO_ROOM
from bigtrain.data.build.examples import EncodedText, ExampleRules, LabelledTokens
from bigtrain.data.build.execute import is_careful, note
from bigtrain.data.build.filters import Filters
from bigtrain.data.build.funnel import Funnel
from bigtrain.data.build.selection import SelectDocuments
from bigtrain.data.format.chat_template import ChatTemplate
from bigtrain.data.format.documents import Document, Piece, Segment, document_id
from bigtrain.data.format.shards import TokenizedDocuments
from bigtrain.data.format.tokenizer import DataTokenizer, open_chat_template
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
    examples: ExampleRules | None = None
    """How its labelled documents are made."""

    def __call__(self, piece: Piece) -> TokenizedPiece:
        """Select the documents of the piece, and tokenize both splits."""
        selection = SelectDocuments(self.filters, self.validation_fraction)(piece)
        train = self._tokenize(selection.train, selection.funnel, held_out=False)
        validation = self._tokenize(selection.validation, selection.funnel, held_out=True)
        selection.funnel.tokens = len(train.tokens) + len(validation.tokens)
        return TokenizedPiece(train, validation, selection.funnel, piece.extent, piece.continued)

    def _tokenize(self, documents: list[Document], funnel: Funnel, *, held_out: bool) -> TokenizedDocuments:
        rules = self.examples
        closing = _load(self.directory, self.identity, rules)
        texts = list(_texts(documents, closing.template))
        encodings = zip(texts, _encoded(closing.tokenizer, texts), strict=True)
        arrays, labels = [], []
        ids, files, positions, metadata = [], [], [], []
        for document in documents:
            if document.ids is not None:
                made = [closing.around(document, np.frombuffer(document.ids, "<u4"))]
            elif rules is None:
                made = [closing.around(document, next(encodings)[1].ids)]
            else:
                own = [next(encodings) for _ in document.texts]
                segments = [rules.labelled(text.segment, encoded) for text, encoded in own]
                examples, cut = closing.examples(rules, segments)
                made = [example.ids for example in examples]
                labels += [example.labels for example in examples]
                funnel.cut += cut
                if not made:
                    funnel.drop(document, len(document.content), NO_ROOM, held_out=held_out)
            arrays += made
            ids += [document_id(self.source, document, window) for window in range(len(made))]
            files += [document.file for _ in made]
            positions += [document.position for _ in made]
            metadata += [document.metadata for _ in made]
        label_type = np.dtype("i1") if rules is None else rules.scheme.dtype
        return TokenizedDocuments(
            tokens=np.concatenate(arrays) if arrays else np.empty(0, token_dtype(closing.vocabulary)),
            labels=np.concatenate(labels).astype(label_type) if labels else np.empty(0, label_type),
            lengths=[len(array) for array in arrays],
            ids=ids,
            files=files,
            positions=positions,
            metadata=metadata if any(metadata) else [],
        )


@dataclass(frozen=True)
class _Enclosed:
    """Puts ids between the tokens that a document begins and ends with."""

    tokenizer: Tokenizer
    begin: npt.NDArray[np.unsignedinteger]
    end: npt.NDArray[np.unsignedinteger]
    """[1]"""
    vocabulary: int
    separator: npt.NDArray[np.unsignedinteger]
    """[1], or [0] where there is none."""
    template: ChatTemplate | None = None
    """How conversations become text."""

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

    def examples(self, rules: ExampleRules, segments: list[LabelledTokens]) -> tuple[list[LabelledTokens], bool]:
        """See `ExampleRules.documents`."""
        return rules.documents(segments, self.begin, self.separator, self.end)


class _TextToEncode(NamedTuple):
    """A text to encode."""

    document: Document
    segment: Segment


def _texts(documents: list[Document], template: ChatTemplate | None) -> Iterator[_TextToEncode]:
    """The texts to encode: of a document of several segments, each one."""
    for document in documents:
        if document.conversation is not None:
            assert template is not None
            where = f"document {document.position} of {document.file}"
            yield _TextToEncode(document, template.render(document.conversation, where))
        elif document.segments:
            yield from (_TextToEncode(document, segment) for segment in document.segments)
        elif document.ids is None:
            yield _TextToEncode(document, Segment(document.text))


def _encoded(tokenizer: Tokenizer, texts: list[_TextToEncode]) -> Iterator[EncodedText]:
    """The tokens of each text. An encoding takes some 100 bytes for each byte of text, so few are held at once."""
    at_once = 0 if is_careful() else CHARACTERS_AT_ONCE
    start = 0
    while start < len(texts):
        end = start + 1
        size = len(texts[start].segment.text)
        while end < len(texts) and size + len(texts[end].segment.text) <= at_once:
            size += len(texts[end].segment.text)
            end += 1
        group = texts[start:end]
        longest = max(group, key=lambda text: len(text.segment.text))
        note(replace(longest.document, text=longest.segment.text))
        yield from _encode(tokenizer, group)
        start = end


def _encode(tokenizer: Tokenizer, group: list[_TextToEncode]) -> list[EncodedText]:
    """The tokens of texts. Raises BigtrainError, which names the document, where the tokenizer cannot encode one."""
    placed = any(text.segment.spans for text in group)
    encode = tokenizer.encode_batch if placed else tokenizer.encode_batch_fast  # the fast one has no offsets
    try:
        encodings = encode([text.segment.text for text in group], add_special_tokens=False)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:  # the library does not say which; a panic of it is no Exception
        return [_encode_one(tokenizer, text) for text in group]
    return [_encoding(encoding, text) for encoding, text in zip(encodings, group, strict=True)]


def _encode_one(tokenizer: Tokenizer, text: _TextToEncode) -> EncodedText:
    with one_error(
        f"document {text.document.position} of {text.document.file} cannot be encoded",
        found=ascii(text.segment.text[:80]),
        wanted="a text that the tokenizer has tokens for",
        fix="use a tokenizer that has a token for unknown characters, or remove the document",
    ):
        return _encoding(tokenizer.encode(text.segment.text, add_special_tokens=False), text)


def _encoding(encoding: Encoding, text: _TextToEncode) -> EncodedText:
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2) if text.segment.spans else None
    return EncodedText(np.array(encoding.ids, np.uint32), offsets)


def token_dtype(vocabulary: int) -> np.dtype[np.unsignedinteger]:
    """The narrowest little-endian type of format 1 that holds ids below `vocabulary`."""
    return np.dtype("<u2") if vocabulary <= 1 << 16 else np.dtype("<u4")


@lru_cache(maxsize=1)
def _load(directory: Path, identity: str, rules: ExampleRules | None) -> _Enclosed:
    data = DataTokenizer.open(directory)
    dtype = token_dtype(data.vocabulary_size)
    begin, end = np.array(data.begin_of_text.ids, dtype), np.array([data.end_id], dtype)
    between = [] if rules is None or rules.separator is None else [data.special_id(rules.separator)]
    separator = np.array(between, dtype)
    if rules is not None and rules.scheme.kind == "turns":  # a template writes special tokens
        template = open_chat_template(directory)
        return _Enclosed(data.for_prompts(), begin, end, data.vocabulary_size, separator, template)
    return _Enclosed(data.for_documents(), begin, end, data.vocabulary_size, separator)

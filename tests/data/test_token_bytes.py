"""The bytes of tokens: those that a text has, whatever the kind of tokenizer."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bigtrain.base import BYTE_SYMBOLS
from bigtrain.config import TokenizerSettings
from bigtrain.data.format.token_bytes import token_bytes
from bigtrain.data.format.tokenizer import DataTokenizer, train_tokenizer
from bigtrain.data.format.tokenizer_content import BeginOfText, TokenizerContent

END = "<|endoftext|>"
BEGIN_MARK, END_MARK, SPECIAL_MARK = range(BYTE_SYMBOLS - 3, BYTE_SYMBOLS)


def of(file: bytes, end: str = END) -> DataTokenizer:
    return DataTokenizer(TokenizerContent.parse(file, "test"), end, BeginOfText())


def trained() -> DataTokenizer:
    settings = TokenizerSettings(vocab_size=320, additional_special_tokens=("[MASK]",))
    return of(train_tokenizer(settings, iter(["def f(x):\n    return x\n" * 20, "naïve straße ☃ " * 20])))


BYTE_LEVEL = trained()


def spelled(row: np.ndarray) -> tuple[int, bytes, int]:
    """The first symbol, the bytes and the last symbol of a token."""
    first, *inner, last = row[row > 0].tolist()
    return first, bytes(symbol - 1 for symbol in inner), last


@given(text=st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_the_bytes_of_a_texts_tokens_are_the_bytes_of_the_text(text: str) -> None:
    table = token_bytes(BYTE_LEVEL, 384, 100)
    ids = BYTE_LEVEL.for_documents().encode(text).ids
    found = [spelled(table[number]) for number in ids]
    assert b"".join(each for _, each, _ in found) == text.encode()
    assert {(first, last) for first, _, last in found} <= {(BEGIN_MARK, END_MARK)}


def test_special_tokens_have_a_mark_and_rows_without_a_token_nothing() -> None:
    table = token_bytes(BYTE_LEVEL, 384, 20)
    vocabulary = BYTE_LEVEL.content.library.get_vocab(with_added_tokens=True)
    for token in (END, "[MASK]"):
        assert spelled(table[vocabulary[token]]) == (SPECIAL_MARK, token.encode(), END_MARK)
    assert not table[len(vocabulary) :].any()
    assert table.shape == (384, 22) and table.dtype == np.int16 and table.max() < BYTE_SYMBOLS


def test_of_a_long_token_the_first_bytes_are_read() -> None:
    vocabulary = BYTE_LEVEL.content.library.get_vocab(with_added_tokens=True)
    first, inner, last = spelled(token_bytes(BYTE_LEVEL, 384, 4)[vocabulary[END]])
    assert (first, inner, last) == (SPECIAL_MARK, b"<|en", END_MARK)


def test_pieces_of_other_tokenizers_are_their_letters_blanks_and_bytes() -> None:
    """SentencePiece's blank is a blank, and its byte pieces are bytes; other letters are their UTF-8."""
    pieces = {END: 0, "\u2581the": 1, "ß": 2, "<0xE2>": 3, "\u0120": 4}
    library = Tokenizer(models.BPE(vocab=pieces, merges=[], byte_fallback=True))
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    table = token_bytes(of(json.dumps(json.loads(library.to_str())).encode()), 5, 10)
    assert [spelled(row)[1] for row in table[1:]] == [b" the", "ß".encode(), b"\xe2", "\u0120".encode()]

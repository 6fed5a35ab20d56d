"""The bytes of each token of a vocabulary, for models that read them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from bigtrain.base import BYTE_SYMBOLS
from bigtrain.data.format.tokenizer import DataTokenizer

_BEGIN, _END, _BEGIN_SPECIAL = BYTE_SYMBOLS - 3, BYTE_SYMBOLS - 2, BYTE_SYMBOLS - 1
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: DataTokenizer, rows: int, longest: int) -> npt.NDArray[np.int16]:
    """The symbols of tokens [rows, longest + 2], see `BYTE_SYMBOLS`; rows of ids that are no token are padding.

    Args:
        tokenizer: of the data.
        rows: of the model's vocabulary.
        longest: so many bytes of a token are read.
    """
    content = tokenizer.content
    special = {*content.special_tokens.values(), *tokenizer.special}
    spelled = _byte_level() if _uses_byte_level(content.content) else {}
    table = np.zeros((rows, longest + 2), np.int16)
    for token, number in content.library.get_vocab(with_added_tokens=True).items():
        if token not in special and (piece := _BYTE_PIECE.fullmatch(token)):
            own = bytes.fromhex(piece[1])
        elif token not in special and all(letter in spelled for letter in token):
            own = bytes(spelled[letter] for letter in token)
        else:
            own = token.replace("\u2581", " ").encode()
        first = _BEGIN_SPECIAL if token in special else _BEGIN
        symbols = [first, *(byte + 1 for byte in own[:longest]), _END]
        table[number, : len(symbols)] = symbols
    return table


def _uses_byte_level(content: Any) -> bool:
    """Whether a tokenizer writes bytes as letters of their own, somewhere among its steps."""
    if isinstance(content, dict):
        return content.get("type") == "ByteLevel" or any(
            _uses_byte_level(content.get(key)) for key in ("pre_tokenizer", "decoder", "pretokenizers", "decoders")
        )
    return isinstance(content, list) and any(_uses_byte_level(each) for each in content)


def _byte_level() -> dict[str, int]:
    """The byte of each letter of byte-level BPE (Radford et al., 2019, as released): printable bytes are themselves,
    and the others are letters from U+0100 on, in their order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + number): byte for number, byte in enumerate(others)}

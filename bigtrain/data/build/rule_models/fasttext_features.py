"""The features of a text as fastText makes them: its known words, and the buckets of its n-grams of words.

A word is what stands between blanks. Its hash is FNV-1a over the bytes as signed numbers; that of an n-gram is a
polynomial in the hashes of its words, modulo 2^64, and its bucket the remainder by the number of buckets (Joulin et al.
2017, and `Dictionary` in the code of fastText, whose arithmetic this is, bit for bit).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from bigtrain.data.build.rule_models.fasttext_file import END_OF_LINE, LABEL_PREFIX

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_BLANKS = re.compile("[ \n\r\t\v\f\0]+")
_MULTIPLIER = np.uint64(116049371)


def one_line(text: str) -> str:
    """A text as one line, in which nothing ends the line before its end: fastText reads no further than `</s>`."""
    return _BLANKS.sub(" ", text.replace(END_OF_LINE, " ")).strip(" ")


def words_of_line(line: str) -> list[str]:
    """The words of a line, and the one that ends it. What looks like a label is none of them."""
    words = [word for word in line.split(" ") if word and not word.startswith(LABEL_PREFIX)]
    return [*words, END_OF_LINE]


def word_hash(word: str) -> int:
    """fastText's hash of a word, as a signed number of 32 bits."""
    value = 2166136261
    for byte in word.encode():
        value = (value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619 & 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def word_hashes(words: Iterable[str]) -> I32:
    """fastText's hash of each word."""
    return np.array([word_hash(word) for word in words], np.int32)


def features_of(rows: I64, hashes: I32, *, words: int, word_ngrams: int, buckets: int) -> I64:
    """The features of a text: rows of the matrix of a model.

    Args:
        rows: [W], the row of each word of the text; -1 for a word that the model does not know.
        hashes: [W], the hash of each word.
        words: how many words the model knows. The rows of its buckets follow theirs.
        word_ngrams: the longest n-gram.
        buckets: how many buckets there are.
    """
    own = [rows[rows >= 0]]
    signed = hashes.astype(np.int64).view(np.uint64)
    rolling = signed
    for n in range(2, min(word_ngrams, len(hashes)) + 1):
        rolling = rolling[: len(hashes) - n + 1] * _MULTIPLIER + signed[n - 1 :]
        own.append(words + (rolling % np.uint64(buckets)).astype(np.int64))
    return np.concatenate(own)

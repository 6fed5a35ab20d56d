"""Word n-grams (shingles, Broder 1997) as 64-bit hashes, for near-duplicates and evaluation texts.

A word is a run of letters and digits, in lower case and in Unicode's compatibility form (NFKC). Punctuation, line ends
and underscores only separate words, so layout and typography do not matter.

The hash of an n-gram is a polynomial in the hashes of its words (Karp and Rabin 1987, modulo 2^64), mixed at the end.
The n-grams of a text then cost one multiplication and one addition per word and length. The n-grams of every shorter
length are computed on the way.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator

import numpy as np
import numpy.typing as npt
import xxhash

U64 = npt.NDArray[np.uint64]

_WORD = re.compile(r"[^\W_]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)
_KNOWN_WORDS = 1 << 20


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def hash_words(words: list[str]) -> U64:
    """xxh3-64 of each word."""
    if len(_HASHES) > _KNOWN_WORDS:
        _HASHES.clear()
    return np.fromiter(map(_HASHES.__getitem__, words), np.uint64, len(words))


def ngram_hashes(words: U64, lengths: Collection[int]) -> Iterator[tuple[int, U64]]:
    """The hashes of all n-grams of these lengths, the shorter lengths first.

    Args:
        words: [W], the hashes of a text's words.
        lengths: each n at most once. Lengths above W give nothing.

    Yields:
        n and an array [W - n + 1], whose item i is the hash of words[i : i + n]. Equal n-grams have equal hashes;
        n-grams of different lengths do not.
    """
    rolling = np.zeros(len(words) + 1, np.uint64)
    for n in range(1, min(max(lengths, default=0), len(words)) + 1):
        rolling = rolling[:-1] * _BASE + words[n - 1 :]
        if n in lengths:
            yield n, mixed(rolling + np.uint64(n))


def mixed(values: U64) -> U64:
    """A bijection of 64-bit integers without a visible pattern: the finalizer of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class _WordHashes(dict[str, int]):
    """Cache of the hashes of words: a look-up takes a third of the time of encoding and hashing."""

    def __missing__(self, word: str) -> int:
        self[word] = xxhash.xxh3_64_intdigest(word.encode())
        return self[word]


_HASHES = _WordHashes()

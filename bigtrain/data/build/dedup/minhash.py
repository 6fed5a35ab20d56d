"""MinHash signatures, and their bands (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, ch. 3).

Under a random permutation of all possible n-grams, two documents have the same smallest n-gram with a probability equal
to the Jaccard similarity s of their sets. `rows` such minima form a band. Documents are candidates for duplicates when
all minima of at least one of `bands` bands agree:

    P(candidates) = 1 - (1 - s^rows)^bands

The permutations are linear, x -> a x + b modulo 2^32 with odd a. On n-grams that are hashes already, these are as good
as random ones (Bohman, Cooper and Frieze 2000, Min-wise independent linear permutations).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import xxhash

from bigtrain.data.build.shingles import U64, hash_words, mixed, ngram_hashes, words_of

U32 = npt.NDArray[np.uint32]

NO_KEY = 0
_SEED = np.uint64(0x9E3779B97F4A7C15)
_PRODUCTS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class MinHash:
    """The comparison of documents: the `near` part of `data.dedup`."""

    ngram: int
    """Words in one n-gram."""
    bands: int
    rows: int
    """Minima in one band."""

    def signature(self, text: str) -> U32 | None:
        """[bands x rows] minima of a text; None for a text without words.

        A text of fewer words than an n-gram is compared as one n-gram of all its words.
        """
        words = hash_words(words_of(text))
        if not len(words):
            return None
        [(_, ngrams)] = ngram_hashes(words, [min(self.ngram, len(words))])
        return _minima(ngrams, self.bands * self.rows)

    def keys(self, text: str) -> list[int]:
        """A 64-bit key for each band: equal keys mean equal minima. All are NO_KEY for a text without words.

        Two bands with different minima have the same key in one of 2^64 cases. Over all pairs of 10^9 documents, that
        is an expected 0.03 pairs per band.
        """
        signature = self.signature(text)
        if signature is None:
            return [NO_KEY] * self.bands
        content, size = signature.astype("<u4").tobytes(), 4 * self.rows
        return [xxhash.xxh3_64_intdigest(content[i : i + size]) or 1 for i in range(0, len(content), size)]


def _minima(ngrams: U64, count: int) -> U32:
    """The smallest image of the n-grams under each of `count` permutations."""
    multipliers, offsets = _permutations(count)
    values = (ngrams >> np.uint64(32)).astype(np.uint32)
    minima = np.full(count, 0xFFFF_FFFF, np.uint32)
    at_once = max(1, _PRODUCTS_AT_ONCE // count)  # the products stay in the second-level cache
    for start in range(0, len(values), at_once):
        images = values[start : start + at_once, None] * multipliers + offsets
        np.minimum(minima, images.min(axis=0), out=minima)
    return minima


@lru_cache(maxsize=4)
def _permutations(count: int) -> tuple[U32, U32]:
    """The odd factors and the summands. They do not depend on numpy, and a longer list starts with the shorter ones."""
    numbers = (mixed(_SEED + np.arange(2 * count, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32)
    return numbers[0::2] | np.uint32(1), numbers[1::2]

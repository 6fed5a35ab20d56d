"""Random numbers by address: a pure function of the seed, a row's source, epoch and sequence, and a place in the row.

    seed, source's name --blake2b--> --+ epoch, sequence--> key of the row --+ site--> numbers of all places of the row

A site is one use of randomness, such as the choice of tokens to mask. So two uses are independent, and a new one leaves
the others as they were. The mixing functions are splitmix64's finaliser (Steele, Lea and Flood, 2014) for keys, and for
numbers two rounds of the 32-bit finaliser `lowbias32` (Wellons, 2018), each keyed by half of the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_BLOCK_WORDS = 1 << 15
"""Numbers that are computed at a time: they stay in the second-level cache."""


class AddressKeys:
    """The keys of rows. A source is known by its name, so sources may be added and reordered."""

    def __init__(self, seed: int, sources: Sequence[str]) -> None:
        digests = [hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8, person=b"objective 1") for name in sources]
        self._sources = np.array([int.from_bytes(digest.digest(), "little") for digest in digests], np.uint64)

    def of(self, source: I64, epoch: I64, sequence: I64) -> U64:
        """The keys [R] of rows at addresses, each i64 [R]."""
        key = mixed(self._sources[source] + (epoch.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))
        return mixed(key + (sequence.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))


def mixed(x: U64) -> U64:
    """Splitmix64's finaliser, a bijection of 64-bit numbers in which each bit depends on all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def numbers(keys: U64, site: int, count: int) -> U32:
    """Uniform 32-bit numbers [R, count] for places 0 to count - 1 of rows with keys [R], at a site."""
    low, high = _halves(keys, site)
    places = _spread(np.arange(count, dtype=np.uint32))
    result = np.empty((len(keys), count), np.uint32)
    rows = max(1, _BLOCK_WORDS // max(count, 1))
    spare = np.empty((min(rows, len(keys)), count), np.uint32)
    for start in range(0, len(keys), rows):
        block = result[start : start + rows]
        np.bitwise_xor(places, low[start : start + rows, None], out=block)
        _mix_in_place(block, spare[: len(block)])
        np.bitwise_xor(block, high[start : start + rows, None], out=block)
        _mix_in_place(block, spare[: len(block)])
    return result


def numbers_at(keys: U64, site: int, rows: I64, places: I64) -> U32:
    """The numbers [n] of single places [n], in rows [n] of those with keys [R]: the same as those of `numbers`."""
    low, high = _halves(keys, site)
    result, spare = _spread(places.astype(np.uint32)), np.empty(len(places), np.uint32)
    result ^= low[rows]
    _mix_in_place(result, spare)
    result ^= high[rows]
    _mix_in_place(result, spare)
    return result


def further(words: U32) -> U32:
    """A further number [n] for each of some that were drawn, which does not depend on whether one is below a bound."""
    result, spare = words + np.uint32(0x9E3779B9), np.empty_like(words)
    _mix_in_place(result, spare)
    return result


def below(probability: float) -> np.uint32:
    """The bound under which a uniform 32-bit number is with a probability below 1, to 2^-32."""
    return np.uint32(min(round(probability * 2**32), 2**32 - 1))


def choices(words: U32, count: int | I64) -> I64:
    """Uniform numbers below `count`, which is far less than 2^32 (Lemire, 2019, without its rejection)."""
    return ((words.astype(np.uint64) * np.asarray(count, np.uint64)) >> np.uint64(32)).astype(np.int64)


def _halves(keys: U64, site: int) -> tuple[U32, U32]:
    own = mixed(keys ^ np.uint64((site + 1) * _GOLDEN & (1 << 64) - 1))
    return own.astype(np.uint32), (own >> np.uint64(32)).astype(np.uint32)


def _spread(places: U32) -> U32:
    return places * np.uint32(0x9E3779B9)


def _mix_in_place(x: U32, spare: U32) -> None:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 0)):
        np.right_shift(x, np.uint32(shift), out=spare)
        np.bitwise_xor(x, spare, out=x)
        if factor:
            np.multiply(x, np.uint32(factor), out=x)

"""Random numbers by address: a pure function of the seed, a row's source, epoch and sequence, and a place in the row.

    seed, source's name --blake2b--> --+ epoch, sequence--> key of the row --+ site--> numbers of all places of the row

A site is one use of randomness, such as the choice of tokens to mask. So two uses are independent, and a new one leaves
the others as they were. A row has a stream of splitmix64 (Steele, Lea and Flood, 2014) at each site. The finaliser of
splitmix64 makes keys, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_BLOCK_WORDS = 1 << 14
"""Numbers that are mixed at a time: they stay in the second-level cache."""


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
    result = x.reshape(-1).copy()
    spare = np.empty(min(len(result), _BLOCK_WORDS), np.uint64)
    for start in range(0, len(result), _BLOCK_WORDS):
        block = result[start : start + _BLOCK_WORDS]
        _mix_in_place(block, spare[: len(block)])
    return result.reshape(x.shape)


def numbers(keys: U64, site: int, count: int) -> U32:
    """Uniform 32-bit numbers [R, count] for places 0 to count - 1 of rows with keys [R], at a site."""
    return _upper(_words(keys, site, count))


def numbers_at(keys: U64, site: int, rows: I64, places: I64) -> U32:
    """The numbers [n] of single places [n], in rows [n] of those with keys [R]: the same as those of `numbers`."""
    return _upper(mixed(_streams(keys, site).take(rows) + _steps(places)))


def numbers_of_runs(keys: U64, sites: int | I64, places: I64, counts: I64) -> U32:
    """The numbers of runs of `counts` [n] places from `places` [n], at sites [n], of rows with keys [n].

    They are the same as those of `numbers`.
    """
    before = np.cumsum(counts) - counts
    words = np.repeat(_streams(keys, sites) + _steps(places - before), counts)
    words += _steps(np.arange(len(words)))
    return _upper(mixed(words))


def happens(keys: U64, site: int, count: int, probability: float, at: I64 | None = None) -> Bools:
    """Whether something with a probability happens at places, [n] of the R*count flattened ones or, by default, at all.

    Each place has 8 bits of its own at the site. Where these leave it open, at one place of 256, the number of the
    place at the next site decides: so the probability is exact to 2^-40.
    """
    bits = _words(keys, site, -(-count // 8)).astype("<u8", copy=False).view(np.uint8)[:, :count]
    drawn = bits.reshape(-1) if at is None else bits.take(at)
    bound, rest = divmod(probability * 256, 1)
    result = drawn < int(bound)
    left = np.flatnonzero(drawn == int(bound))
    row, place = np.divmod(left if at is None else at.take(left), count)
    result[left] = numbers_at(keys, site + 1, row, place) < below(rest)
    return result


def further(words: U32) -> U32:
    """A further number [n] for each of some that were drawn, which does not depend on whether one is below a bound."""
    return _upper(mixed(words + np.uint64(_GOLDEN)))


def below(probability: float) -> np.uint32:
    """The bound under which a uniform 32-bit number is with a probability below 1, to 2^-32."""
    return np.uint32(min(round(probability * 2**32), 2**32 - 1))


def choices(words: U32, count: int | I64) -> I64:
    """Uniform numbers below `count`, which is far less than 2^32 (Lemire, 2019, without its rejection)."""
    return ((words.astype(np.uint64) * np.asarray(count, np.uint64)) >> np.uint64(32)).astype(np.int64)


def _words(keys: U64, site: int, count: int) -> U64:
    """Uniform 64-bit numbers [R, count], whose upper halves are those of `numbers`."""
    return mixed(_streams(keys, site)[:, None] + _steps(np.arange(count)))


def _streams(keys: U64, sites: int | I64) -> U64:
    """[R], where the streams of sites start: one of splitmix64 for each row."""
    return mixed(keys ^ _steps(np.atleast_1d(sites) + 1))


def _steps(places: I64) -> U64:
    """How far the state of a stream is from its start at places [n]."""
    return places.astype(np.uint64) * np.uint64(_GOLDEN)


def _upper(words: U64) -> U32:
    return (words >> np.uint64(32)).astype(np.uint32)


def _mix_in_place(x: U64, spare: U64) -> None:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        np.right_shift(x, np.uint64(shift), out=spare)
        np.bitwise_xor(x, spare, out=x)
        if factor > 1:
            np.multiply(x, np.uint64(factor), out=x)

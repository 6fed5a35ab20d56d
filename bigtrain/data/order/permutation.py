"""A keyed bijective permutation of range(n), computed point by point: no array of size n, no random state.

A mixed-radix Feistel network (format-preserving encryption; Black and Rogaway 2002, "generalized Feistel"): with
a = ceil(sqrt(n)) and b = ceil(n / a), a number x < a*b is the pair (x // b, x % b). Rounds add a keyed function of
one half to the other half, in turn, modulo a or b; each round can be undone, so all of them together are a bijection
of range(a*b). Cycle-walking takes it to range(n): apply again while the result is not below n. As a*b - n < a, that
is rare. The round function is splitmix64's finaliser (Steele, Lea and Flood 2014), which is not affine.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from math import isqrt

import numpy as np
import numpy.typing as npt

from bigtrain.data.format.hashing import canonical_json, digest

ROUNDS = 6
_MASK = (1 << 64) - 1
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)

U64 = npt.NDArray[np.uint64]


class Permutation:
    """The permutation of range(n) that belongs to a key, e.g. (seed, source, epoch)."""

    def __init__(self, n: int, *key: int | str) -> None:
        if not 0 < n < 1 << 62:
            raise ValueError(f"a permutation of {n} items")
        self.n = n
        self.a = isqrt(n - 1) + 1
        self.b = -(-n // self.a)
        self.round_keys = struct.unpack(
            f"<{ROUNDS}Q", digest(canonical_json(key), person=b"permutation 1", size=8 * ROUNDS)
        )

    def __call__(self, x: int) -> int:
        """The image of x. The same as `many`, but faster for a single number."""
        while True:
            left, right = divmod(x, self.b)
            for number, key in enumerate(self.round_keys):
                if number % 2:
                    right = (right + _mix(left ^ key)) % self.b
                else:
                    left = (left + _mix(right ^ key)) % self.a
            x = left * self.b + right
            if x < self.n:
                return x

    def many(self, x: U64) -> U64:
        """The image of each of x (u64 [n])."""
        return self._walk(x, self._once)

    def inverse(self, y: U64) -> U64:
        """The preimage of each of y (u64 [n]): `inverse(many(x)) == x`. It walks the same cycles backwards."""
        return self._walk(y, self._once_back)

    def _walk(self, x: U64, once: Callable[[U64], U64]) -> U64:
        y = once(x)
        while len(outside := np.flatnonzero(y >= np.uint64(self.n))):
            y[outside] = once(y[outside])
        return y

    def _once(self, x: U64) -> U64:
        a, b = np.uint64(self.a), np.uint64(self.b)
        left, right = np.divmod(x, b)
        for number, key in enumerate(self.round_keys):
            if number % 2:
                right = (right + _mix_many(left ^ np.uint64(key))) % b
            else:
                left = (left + _mix_many(right ^ np.uint64(key))) % a
        return left * b + right

    def _once_back(self, y: U64) -> U64:
        a, b = np.uint64(self.a), np.uint64(self.b)
        left, right = np.divmod(y, b)
        for number, key in reversed(list(enumerate(self.round_keys))):
            if number % 2:
                right = (right + b - _mix_many(left ^ np.uint64(key)) % b) % b
            else:
                left = (left + a - _mix_many(right ^ np.uint64(key)) % a) % a
        return left * b + right


def _mix(x: int) -> int:
    """Splitmix64's finaliser without its last bits, so that a sum with a half stays below 2^64."""
    x = ((x ^ (x >> 30)) * _MULTIPLIERS[0]) & _MASK
    x = ((x ^ (x >> 27)) * _MULTIPLIERS[1]) & _MASK
    return (x ^ (x >> 31)) >> 1


def _mix_many(x: U64) -> U64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MULTIPLIERS[0])
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MULTIPLIERS[1])
    return (x ^ (x >> np.uint64(31))) >> np.uint64(1)


@lru_cache(maxsize=256)
def permutation(n: int, *key: int | str) -> Permutation:
    """`Permutation(n, *key)`, cached: batches need the same few permutations repeatedly."""
    return Permutation(n, *key)

"""Exact integer quotas: the source of the k-th sample of a mixture, in closed form.

A balanced binary tree has the sources as leaves. Of the first n samples that reach a node, the left child has

    L(n) = floor((n * w_left + h) / w),    w = w_left + w_right,  h = floor(w / 2)

and the right child the rest. L starts at 0 and grows by 0 or 1, so sample k goes left exactly if L(k+1) > L(k), as
number L(k) of that child. All arithmetic is on integers: sums are exact, the order never depends on rounding, and
each source is within log2(number of sources) samples of its ideal share of any prefix.

The inverse: the left child's number k is the node's number n with L(n+1) = k+1 > L(n). The right child's number k is
the n with n - L(n) = k and L(n+1) = L(n). Solved for n,

    left:  n = floor((k * w + w - h - 1) / w_left)        right:  n = floor((k * w + h) / w_right)
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np
import numpy.typing as npt

from bigtrain.base import BigtrainError

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

MAX_TOTAL = 1 << 32
"""Limit on the sum of integer weights, so that products stay below 2^64."""


def integer_weights(shares: Sequence[Fraction]) -> list[int]:
    """The smallest integers in the same proportion. Raises BigtrainError if they are too large."""
    scale = lcm(*(share.denominator for share in shares))
    weights = [int(share * scale) for share in shares]
    divisor = gcd(*weights)
    weights = [weight // divisor for weight in weights]
    if sum(weights) > MAX_TOTAL:
        raise BigtrainError(
            "data.sources: the weights have too many digits to be mixed exactly",
            found=", ".join(str(float(share)) for share in shares),
            wanted=f"weights whose numerators over a common denominator have a sum of at most {MAX_TOTAL:,}",
            fix="round the weights to a few digits",
        )
    return weights


def weights_in_proportion(counts: Sequence[int]) -> list[int]:
    """Integer weights in proportion to counts, exact if the sum of the counts is at most MAX_TOTAL."""
    shift = max(0, sum(counts).bit_length() - 32)
    weights = [max(1, count >> shift) for count in counts]
    return weights if sum(weights) <= MAX_TOTAL else [max(1, weight >> 1) for weight in weights]


class Quotas:
    """The mixture of sources with these integer weights."""

    def __init__(self, weights: Sequence[int]) -> None:
        if not weights or min(weights) < 1 or sum(weights) > MAX_TOTAL:
            raise ValueError(f"weights {weights}")
        self.weights = list(weights)

    def locate(self, samples: U64) -> tuple[I64, U64]:
        """For each sample number (u64): its source's index (i64), and its number within that source (u64)."""
        sources = np.zeros(len(samples), np.int64)
        within = samples.copy()
        self._descend(0, len(self.weights), np.arange(len(samples)), sources, within)
        return sources, within

    def _descend(self, low: int, high: int, members: I64, sources: I64, within: U64) -> None:
        """Move the samples at `members` from the node over sources low..high-1 down to its leaves, in place."""
        if high - low == 1:
            sources[members] = low
            return
        middle = (low + high) // 2
        left, total = sum(self.weights[low:middle]), sum(self.weights[low:high])
        n = within[members]
        before = _left_share(n, left, total)
        goes_left = _left_share(n + np.uint64(1), left, total) > before
        within[members] = np.where(goes_left, before, n - before)
        self._descend(low, middle, members[goes_left], sources, within)
        self._descend(middle, high, members[~goes_left], sources, within)

    def invert(self, source: int, within: U64) -> U64:
        """The sample numbers (u64) of a source's samples number `within` (u64): inverts `locate`."""
        numbers = within
        for low, middle, high in reversed(self._path(source)):
            left, total = sum(self.weights[low:middle]), sum(self.weights[low:high])
            half = total // 2
            if source < middle:
                numbers = _scaled(numbers, total, total - half - 1, left)
            else:
                numbers = _scaled(numbers, total, half, total - left)
        return numbers

    def _path(self, source: int) -> list[tuple[int, int, int]]:
        """The nodes from the root to a source's leaf, as (low, middle, high)."""
        low, high, path = 0, len(self.weights), []
        while high - low > 1:
            middle = (low + high) // 2
            path.append((low, middle, high))
            low, high = (low, middle) if source < middle else (middle, high)
        return path

    def counts(self, samples: int) -> list[int]:
        """How many of the first `samples` samples come from each source."""
        return self._counts(0, len(self.weights), samples)

    def _counts(self, low: int, high: int, samples: int) -> list[int]:
        if high - low == 1:
            return [samples]
        middle = (low + high) // 2
        left, total = sum(self.weights[low:middle]), sum(self.weights[low:high])
        share = (samples * left + total // 2) // total
        return self._counts(low, middle, share) + self._counts(middle, high, samples - share)


def _left_share(n: U64, left: int, total: int) -> U64:
    """L(n) of a node."""
    return _scaled(n, left, total // 2, total)


def _scaled(n: U64, factor: int, offset: int, divisor: int) -> U64:
    """floor((n * factor + offset) / divisor) with a product below 2^64, from n = q * divisor + r.

    factor and divisor are at most MAX_TOTAL and offset below factor or divisor, so r * factor + offset < 2^64.
    """
    quotient, rest = np.divmod(n, np.uint64(divisor))
    return quotient * np.uint64(factor) + (rest * np.uint64(factor) + np.uint64(offset)) // np.uint64(divisor)

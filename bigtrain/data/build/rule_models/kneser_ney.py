"""An n-gram model with interpolated modified Kneser-Ney smoothing.

Chen and Goodman (1999), "An empirical study of smoothing techniques for language modeling", section 3, with
interpolation at every order and the uniform distribution below the unigrams:

    p_k(w | h) = max(c(hw) - D(c(hw)), 0) / c(h.) + (D1 N1(h.) + D2 N2(h.) + D3 N3+(h.)) / c(h.) * p_{k-1}(w | h')
    Y = n1 / (n1 + 2 n2),  D1 = 1 - 2 Y n2/n1,  D2 = 2 - 3 Y n3/n2,  D3+ = 3 - 4 Y n4/n3

At the highest order c counts occurrences; below, it counts the different tokens that come before (the start of a
document is one of them). h' is h without its first token. An h that never occurred leaves the word to p_{k-1}.

All of it is sorting. A k-gram gets the index of its key (index of its first k-1 tokens) * V + last token among the
sorted keys of that order, which makes every lookup a binary search and every count a `bincount`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ORDER = 5

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KneserNeyLevel:
    """The k-grams of one order."""

    keys: I64
    """[K], sorted: (index of the context among the (k-1)-grams) * V + token."""
    discounted: F64
    """[K], max(c - D(c), 0) / c(h.)"""
    left_over: F64
    """[contexts], the share of a context that goes to the order below; 1 for one that was never continued."""


class NGramModel:
    """An n-gram model over token ids below `vocab_size`, from documents given as tokens and the position in each.

    Args:
        tokens: [n], all documents one after the other.
        depth: [n], 0 at the start of each document, then 1, 2, ...
        vocab_size: number of different ids.
        order: the n of n-gram.
    """

    def __init__(self, tokens: I64, depth: I64, *, vocab_size: int, order: int = ORDER) -> None:
        self.vocab_size, self.order = vocab_size, order
        keys: list[I64] = []
        index = np.zeros(len(tokens), np.int64)  # of the k-gram that ends here; -1 where the document is too short
        indices: list[I64] = []
        for k in range(1, order + 1):
            context = np.roll(index, 1)
            ends = np.flatnonzero(depth >= k - 1)
            unique, inverse = np.unique(context[ends] * vocab_size + tokens[ends], return_inverse=True)
            index = np.full(len(tokens), -1, np.int64)
            index[ends] = inverse
            keys.append(unique)
            indices.append(index)
        self.levels = [self._level(k, keys, indices, depth) for k in range(1, order + 1)]

    def _level(self, k: int, keys: list[I64], indices: list[I64], depth: I64) -> KneserNeyLevel:
        own, unique = indices[k - 1], keys[k - 1]
        if k == self.order:
            counts = np.bincount(own[depth >= k - 1], minlength=len(unique))
        else:
            above = indices[k]
            ends = np.flatnonzero(depth >= k)
            somewhere = np.empty(len(keys[k]), np.int64)
            somewhere[above[ends]] = ends  # one occurrence of every (k+1)-gram
            counts = np.bincount(own[somewhere], minlength=len(unique))
            counts[np.unique(own[depth == k - 1])] += 1  # k-grams at the start of a document
        contexts = len(keys[k - 2]) if k > 1 else 1
        of = unique // self.vocab_size
        discount = _discounts(counts)[np.minimum(counts, 3)]
        total = np.bincount(of, counts, contexts)
        taken = np.bincount(of, discount, contexts)
        with np.errstate(invalid="ignore"):
            left_over = np.where(total > 0, taken / total, 1.0)
        return KneserNeyLevel(unique, (counts - discount) / total[of], left_over)

    def probabilities(self, tokens: I64, visible: I64) -> F64:
        """p(token | the `visible` tokens before it, of which the last order-1 count) for every token.

        Args:
            tokens: [n], any number of texts one after the other.
            visible: [n], how many tokens before each belong to its text and may be looked at.
        """
        index = np.zeros(len(tokens), np.int64)
        result = np.full(len(tokens), 1.0 / self.vocab_size)
        for k, level in enumerate(self.levels, start=1):
            context = np.roll(index, 1) if k > 1 else index
            context = np.where(visible >= k - 1, context, -1)
            known = np.flatnonzero(context >= 0)
            keys = context[known] * self.vocab_size + tokens[known]
            position = np.minimum(np.searchsorted(level.keys, keys), len(level.keys) - 1)
            found = level.keys[position] == keys
            result[known] = (
                np.where(found, level.discounted[position], 0.0) + level.left_over[context[known]] * result[known]
            )
            index = np.full(len(tokens), -1, np.int64)
            index[known[found]] = position[found]
        return result


def _discounts(counts: I64) -> F64:
    """D for a count of 0, 1, 2, and 3 or more. Text too small for the estimate gets 0.5, 1 and 1.5."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == c)) for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0.0, 0.5, 1.0, 1.5])
    y = n1 / (n1 + 2 * n2)
    estimate = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    discounts: F64 = np.clip(estimate, 0.0, np.arange(4.0))
    return discounts

"""Baselines for a language model: unigram, and n-gram with interpolated modified Kneser-Ney smoothing.

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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bigtrain.base import IGNORE_INDEX
from bigtrain.data import Dataset, MicroBatch

ORDER = 5
MAX_TRAIN_TOKENS = 20_000_000

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Level:
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

    def _level(self, k: int, keys: list[I64], indices: list[I64], depth: I64) -> _Level:
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
        return _Level(unique, (counts - discount) / total[of], left_over)

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


class Baselines:
    """A unigram and a 5-gram model of the training split, for perplexities that a decoder should beat.

    `unigram` is add-one smoothed. Of training sets with more than `max_train_tokens`, every m-th document is taken.
    Training needs about 150 bytes and 1 to 2 microseconds a token.
    """

    def __init__(self, train: Sequence[Dataset], *, max_train_tokens: int = MAX_TRAIN_TOKENS) -> None:
        tokens, depth = training_documents(train, max_train_tokens)
        vocab_size = max(dataset.summary.vocab_size for dataset in train)
        begins = max(len((dataset.summary.begin_of_text or {"ids": []})["ids"]) for dataset in train)
        counts = np.bincount(tokens[depth >= begins], minlength=vocab_size) + 1.0  # what begins a document is no label
        self._unigram: F64 = np.log(counts / counts.sum())
        self._ngram = NGramModel(tokens, depth, vocab_size=vocab_size)

    def perplexities(self, validation: Iterable[MicroBatch]) -> dict[str, float]:
        """Perplexity per token, by model, on exactly the labels of these batches (on the CPU).

        The models see what the decoder sees: the tokens of the same document before the label, as far as they are in
        the row.
        """
        nats = np.zeros(2)
        labels = 0
        for batch in validation:
            target, visible, labelled = _as_text(batch)
            nats[0] -= self._unigram[target[labelled]].sum()
            nats[1] -= np.log(self._ngram.probabilities(target, visible)[labelled]).sum()
            labels += len(labelled)
        unigram, ngram = np.exp(nats / max(labels, 1))
        return {"unigram": float(unigram), f"{ORDER}-gram": float(ngram)}


class LabelBaselines:
    """The same where labels are not the next tokens of a text, as those of masked tokens: a unigram model of the
    labels of training batches alone, add-one smoothed. A 5-gram model would need the tokens before a label."""

    def __init__(self, train: Iterable[MicroBatch], vocab_size: int) -> None:
        counts = np.ones(vocab_size)
        for batch in train:
            counts += np.bincount(_labels_of(batch), minlength=vocab_size)
        self._unigram: F64 = np.log(counts / counts.sum())

    def perplexities(self, validation: Iterable[MicroBatch]) -> dict[str, float]:
        """Perplexity per label, by model, on exactly the labels of these batches."""
        labels = np.concatenate([_labels_of(batch) for batch in validation])
        return {"unigram": float(np.exp(-self._unigram[labels].mean()))}

    def accuracy(self, validation: Iterable[MicroBatch]) -> float:
        """The share of these labels that are the most frequent one of the training batches."""
        labels = np.concatenate([_labels_of(batch) for batch in validation])
        return float((labels == self._unigram.argmax()).mean())


def _labels_of(batch: MicroBatch) -> I64:
    labels: I64 = batch.labels.numpy().reshape(-1).astype(np.int64)
    return labels[labels != IGNORE_INDEX]


def _as_text(batch: MicroBatch) -> tuple[I64, I64, I64]:
    """The rows as text with one more token each, so that a row's last label is there: tokens, visible, labelled.

    `labelled` are the tiers of the labels; the tokens before one that `visible` allows are its inputs.
    """
    inputs, labels, positions = (t.numpy() for t in (batch.input_ids, batch.labels, batch.position_ids))
    tokens = np.concatenate((inputs, np.where(labels[:, -1:] == IGNORE_INDEX, 0, labels[:, -1:])), axis=1)
    visible = np.concatenate((positions, positions[:, -1:] + 1), axis=1)
    labelled = np.concatenate((np.zeros((len(labels), 1), bool), labels != IGNORE_INDEX), axis=1)
    return tokens.reshape(-1), visible.reshape(-1), np.flatnonzero(labelled.reshape(-1))


def training_documents(train: Sequence[Dataset], max_tokens: int) -> tuple[I64, I64]:
    """All documents, or every m-th of them: tokens, and each token's place in its document."""
    every = -(-sum(dataset.tokens for dataset in train) // max_tokens)
    tokens: list[I64] = []
    depth: list[I64] = []
    seen = 0
    for shard in (shard for dataset in train for shard in dataset.shards):
        offset = shard.documents.offset
        lengths = np.diff(offset)
        taken = (np.arange(len(lengths)) + seen) % every == 0
        place = np.arange(offset[-1]) - np.repeat(offset[:-1], lengths)
        mask = np.repeat(taken, lengths)
        tokens.append(shard.tokens[mask].astype(np.int64))
        depth.append(place[mask])
        seen += len(lengths)
    return np.concatenate(tokens), np.concatenate(depth)

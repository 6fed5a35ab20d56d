"""Baselines for a language model: unigram, and n-gram with interpolated modified Kneser-Ney smoothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from bigtrain.base import IGNORE_INDEX
from bigtrain.data import NGRAM_ORDER, Dataset, MicroBatch, NGramModel

MAX_TRAIN_TOKENS = 20_000_000

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


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
        return {"unigram": float(unigram), f"{NGRAM_ORDER}-gram": float(ngram)}


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

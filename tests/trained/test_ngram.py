"""Promises of the n-gram yardsticks, against a slow reference with dictionaries."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from bigtrain.data import validation_batches
from bigtrain.data.batch.packing import ConcatPacking
from bigtrain.data.build.rule_models.kneser_ney import NGramModel
from bigtrain.trained.ngram import Baselines, training_documents
from tests.data.helpers import write_dataset

VOCABULARY = 12
START = -1


class SlowKneserNey:
    """Interpolated modified Kneser-Ney, written from the formulas."""

    def __init__(self, documents: list[list[int]], order: int) -> None:
        self.order = order
        self.counts: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
        before: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for document in documents:
            for end in range(1, len(document) + 1):
                for k in range(1, min(order, end) + 1):
                    gram = tuple(document[end - k : end])
                    before[gram].add(document[end - k - 1] if end > k else START)
                    if k == order:
                        self.counts[k][gram] += 1
        for gram, tokens in before.items():
            if len(gram) < order:
                self.counts[len(gram)][gram] = len(tokens)
        self.discounts = [self.discount(counts) for counts in self.counts]

    @staticmethod
    def discount(counts: Counter[tuple[int, ...]]) -> list[float]:
        n = Counter(counts.values())
        if not (n[1] and n[2] and n[3] and n[4]):
            return [0, 0.5, 1.0, 1.5]
        y = n[1] / (n[1] + 2 * n[2])
        raw = [0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        return [min(max(value, 0), limit) for limit, value in enumerate(raw)]

    def probability(self, context: tuple[int, ...], token: int) -> float:
        context = context[-(self.order - 1) :] if self.order > 1 else ()
        lower = 1 / VOCABULARY if not context else self.probability(context[1:], token)
        if not context:
            followers = {gram[-1]: count for gram, count in self.counts[1].items()}
        else:
            counts = self.counts[len(context) + 1]
            followers = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
        if not followers:
            return lower
        discounts = self.discounts[len(context) + 1]
        total = sum(followers.values())
        taken = sum(discounts[min(count, 3)] for count in followers.values())
        count = followers.get(token, 0)
        return (count - discounts[min(count, 3)]) / total + taken / total * lower


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    """Text with a structure to learn: a noisy walk round the vocabulary; the last id never occurs."""
    rng = np.random.default_rng(0)
    made = []
    for length in rng.integers(1, 40, 60):
        steps = rng.choice([1, 1, 1, 2, 5], length)
        made.append([int(token) % (VOCABULARY - 2) + 1 for token in np.cumsum(steps)])
    return made


def train(documents: list[list[int]], order: int) -> NGramModel:
    tokens = np.array([token for document in documents for token in document])
    depth = np.array([index for document in documents for index in range(len(document))])
    return NGramModel(tokens, depth, vocab_size=VOCABULARY, order=order)


def probability(model: NGramModel, context: tuple[int, ...], token: int) -> float:
    tokens = np.array([*context, token])
    return float(model.probabilities(tokens, np.arange(len(tokens)))[-1])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_are_those_of_the_slow_reference(documents: list[list[int]], order: int) -> None:
    fast, slow = train(documents, order), SlowKneserNey(documents, order)
    rng = np.random.default_rng(order)
    contexts = [tuple(rng.integers(0, VOCABULARY, length).tolist()) for length in range(6) for _ in range(5)]
    contexts += [tuple(document[:n]) for document in documents[:10] for n in range(min(6, len(document)))]
    for context in contexts:
        for token in range(VOCABULARY):
            assert probability(fast, context, token) == pytest.approx(slow.probability(context, token), rel=1e-12)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_probabilities_add_up_to_one_after_any_context(documents: list[list[int]], order: int) -> None:
    model = train(documents, order)
    rng = np.random.default_rng(1)
    for length in range(7):
        for _ in range(10):
            context = tuple(rng.integers(0, VOCABULARY, length).tolist())
            probabilities = [probability(model, context, token) for token in range(VOCABULARY)]
            assert sum(probabilities) == pytest.approx(1, rel=1e-12)
            assert min(probabilities) > 0


def test_perplexities_are_over_the_labels_with_the_context_of_the_row(
    tmp_path: Path, documents: list[list[int]]
) -> None:
    """Perplexities are over exactly the labels, each with the tokens of its document before it in the row."""
    trained = write_dataset(tmp_path / "train", [documents[:20], documents[20:40]], vocab_size=VOCABULARY)
    held_out = write_dataset(tmp_path / "validation", [documents[40:]], vocab_size=VOCABULARY)
    arguments = {"max_sequences": None, "micro_batch_size": 4}
    found = Baselines([trained]).perplexities(validation_batches(ConcatPacking(held_out, 7), **arguments))

    slow = SlowKneserNey([[*document, 0] for document in documents[:40]], 5)
    counts = Counter(token for document in documents[:40] for token in [*document, 0])
    stream = [(token, n) for n, document in enumerate(documents[40:]) for token in [*document, 0]]
    nats = {"unigram": 0.0, "5-gram": 0.0}
    labels = 0
    for row in range(0, len(stream), 7):
        for end in range(row + 1, min(row + 8, len(stream))):
            token, number = stream[end]
            if stream[end - 1][1] != number:
                continue
            context = tuple(t for t, n in stream[row:end] if n == number)
            nats["5-gram"] -= math.log(slow.probability(context, token))
            nats["unigram"] -= math.log((counts[token] + 1) / (counts.total() + VOCABULARY))
            labels += 1
    assert found == pytest.approx({name: math.exp(value / labels) for name, value in nats.items()})
    assert found["5-gram"] < found["unigram"] < VOCABULARY


def test_a_capped_training_set_is_whole_documents_spread_over_it(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [[[n] * 9 for n in range(1, 51)], [[n] * 9 for n in range(51, 101)]])
    tokens, depth = training_documents([dataset], 250)
    assert len(tokens) == 250
    assert depth.tolist() == list(range(10)) * 25
    assert sorted(set(tokens[depth == 0].tolist())) == list(range(1, 101, 4))

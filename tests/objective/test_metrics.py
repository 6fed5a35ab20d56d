"""Promises of the metrics of labels: they equal those of the known libraries, and their counts add."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.config import ObjectiveSettings
from bigtrain.config.objective_settings import METRICS_OF
from bigtrain.objective.labelled import END, START
from bigtrain.objective.metrics import AnswerMetric, ClassMetric, TagMetric, best_span, entities, make_metric, overlap

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-PER")
classes = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)
sentences = st.lists(
    st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=12), min_size=1, max_size=6
)


def one_hot(numbers: list[int], width: int) -> np.ndarray:
    return np.eye(width)[numbers]


@given(classes, st.integers(1, 59))
def test_scores_of_classes_are_those_of_scikit_learn(pairs: list[tuple[int, int]], cut: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    true, predicted = (list(each) for each in zip(*pairs, strict=True))
    metric = ClassMetric(4)
    halves = [pairs[:cut], pairs[cut:]]
    counts = sum(
        metric.counts(
            one_hot([guess for _, guess in half], 4), np.array([label for label, _ in half], np.int64), np.array([0])
        )
        for half in halves
        if half
    )
    scores = metric.scores(counts)
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(true, predicted, average="macro", zero_division=0))
    assert scores["matthews"] == pytest.approx(metrics.matthews_corrcoef(true, predicted))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_f1_of_two_classes_is_that_of_the_second_one(pairs: list[tuple[bool, bool]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    true, predicted = (np.array(each, np.int64) for each in zip(*pairs, strict=True))
    metric = ClassMetric(2)
    scores = metric.scores(metric.counts(one_hot(predicted.tolist(), 2), true, np.array([0, len(true)])))
    assert scores["f1"] == pytest.approx(metrics.f1_score(true, predicted, zero_division=0))


@given(sentences, st.integers(0, 5))
def test_scores_of_entities_are_those_of_seqeval(tagged: list[list[tuple[str, str]]], cut: int) -> None:
    metrics = pytest.importorskip("seqeval.metrics")
    metric = TagMetric(TAGS)
    number = {name: place for place, name in enumerate(TAGS)}
    counts = np.zeros(3 * len(metric.types) + 2)
    for part in (tagged[:cut], tagged[cut:]):
        flat = [pair for sentence in part for pair in (*sentence, None)]  # None: a token without a label
        labels = np.array([IGNORE_INDEX if pair is None else number[pair[0]] for pair in flat], np.int64)
        logits = one_hot([0 if pair is None else number[pair[1]] for pair in flat], len(TAGS)).reshape(-1, len(TAGS))
        boundaries = np.cumsum([0, *(len(sentence) + 1 for sentence in part)])
        counts += metric.counts(logits, labels, boundaries)
    scores = metric.scores(counts)
    true = [[tag for tag, _ in sentence] for sentence in tagged]
    predicted = [[tag for _, tag in sentence] for sentence in tagged]
    for name in ("f1", "precision", "recall", "accuracy"):
        wanted = getattr(metrics, f"{name}_score")
        extra = {} if name == "accuracy" else {"zero_division": 0}
        assert scores[name] == pytest.approx(wanted(true, predicted, **extra)), name


def test_entities_have_types_and_places() -> None:
    tags = ["B-PER", "I-PER", "O", "I-LOC", "E-LOC", "I-LOC", "S-PER", "B-PER"]
    found = [("PER", 0, 1), ("LOC", 3, 4), ("LOC", 5, 5), ("PER", 6, 6), ("PER", 7, 7)]
    assert list(entities(tags)) == found


spans = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda pair: (min(pair), max(pair)))


@given(spans, spans)
def test_what_answers_have_in_common_is_as_squads_script_has_it(found, wanted) -> None:
    from collections import Counter

    one, other = (list(range(first, last + 1)) for first, last in (found, wanted))
    common = sum((Counter(one) & Counter(other)).values())
    expected = 0.0
    if common:
        precision, recall = common / len(one), common / len(other)
        expected = 2 * precision * recall / (precision + recall)
    assert overlap(found, wanted) == pytest.approx(expected)


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 12))
def test_the_likeliest_answer_is_found_among_all_that_may_be(seed: int, tokens: int, longest: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(tokens, 2))
    able = [(0, 0)] + [(a, b) for a in range(1, tokens) for b in range(a, min(tokens, a + longest))]
    assert best_span(logits, longest)[:2] == max(able, key=lambda span: logits[span[0], 0] + logits[span[1], 1])


def test_answers_are_counted_by_document_and_others_left_out() -> None:
    labels = np.full(12, IGNORE_INDEX, np.int64)
    labels[[1, 2]] = START, END  # the first document; the second has none; the third is not labelled
    labels[4] = START + END
    logits = np.zeros((12, 2))
    logits[1, 0] = logits[2, 1] = 5.0  # right
    logits[6, 0] = logits[6, 1] = 5.0  # wrong
    counts = AnswerMetric().counts(logits, labels, np.array([0, 4, 8, 12]))
    assert counts.tolist() == [1, 1.0, 2]
    assert AnswerMetric().scores(counts) == {"exact_match": 0.5, "f1": 0.5}


@pytest.mark.parametrize("name", ["classification", "token_classification", "extractive_qa"])
def test_the_settings_know_what_each_objective_measures(name: str) -> None:
    metric = make_metric(ObjectiveSettings(name=name), ("O", "B-PER"))
    assert metric is not None
    logits, labels = np.eye(2)[[0, 1, 0, 1]], np.array([1, 1, 3 if name == "extractive_qa" else 0, IGNORE_INDEX])
    scores = metric.scores(metric.counts(logits, labels, np.array([0, 4])))
    assert tuple(scores) == METRICS_OF[name]


def test_objectives_of_tokens_have_no_metric_of_labels() -> None:
    assert make_metric(ObjectiveSettings(), ()) is None

"""`bigtrain data classifier train`: a linear classifier of texts from two sets of documents.

The features of a text are those of fastText: its known words and the hashed n-grams of its words, each with its share
of them. Their weights are fitted by logistic regression. fastText's own training follows gradients of one text after
the other in threads that race; for two labels its vectors amount to one number a feature, and that is what the
file has: a model of one dimension, which fastText and the rule `classifier` read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bigtrain.data.build.rule_models.fasttext_features import features_of, one_line, word_hashes, words_of_line
from bigtrain.data.build.rule_models.fasttext_file import FastTextModel
from bigtrain.data.build.rule_models.logistic_regression import SparseRows, fit, sigmoid
from bigtrain.data.build.rule_models.sample_documents import require_documents, sample_documents
from bigtrain.data.build.rule_models.word_table import WordTable
from bigtrain.data.format.documents import Document, is_held_out
from bigtrain.data.format.hashing import file_digest

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

HELD_OUT = 0.1
"""The share of the documents that the classifier is tried on."""
FEWEST = 10
"""Documents of each set, at least."""
BINS = 10
LABELS = ("positive", "negative")


@dataclass(frozen=True)
class ClassifierOptions:
    """How a classifier is trained."""

    word_ngrams: int = 2
    """The longest n-gram of words that is a feature."""
    buckets: int = 1 << 21
    """How many different hashes n-grams have."""
    max_words: int = 100_000
    """Single words that are features: the most frequent ones."""
    min_count: int = 2
    """A rarer word is no feature by itself."""
    l2: float = 1e-6
    """The strength of the penalty on weights."""


@dataclass(frozen=True)
class ThresholdScores:
    """What a threshold would do to the held-out documents."""

    threshold: float
    kept: float
    """The share of all of them whose score reaches it."""
    precision: float | None
    """The share of positive ones among those; null where it keeps none."""
    recall: float
    """The share of the positive ones that it keeps."""


@dataclass(frozen=True)
class CalibrationBin:
    """The held-out documents whose scores lie between two bounds."""

    low: float
    high: float
    documents: int
    mean_score: float
    positive: float
    """The share of positive ones. A calibrated score is close to it."""


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier that was written, and how it does on documents that it did not learn from."""

    model: str
    hash: str
    """Of the file, for `hash` of the rule."""
    positive: int
    """Documents to learn from, with the label positive."""
    negative: int
    features: int
    """Words and buckets that have a weight of their own."""
    held_out: int
    """Documents that it is tried on."""
    accuracy: float
    """At a threshold of 0.5."""
    majority: float
    """The accuracy of the more frequent label alone."""
    auc: float
    """The probability that a positive document has a higher score than a negative one."""
    log_loss: float
    """In nats a document."""
    thresholds: list[ThresholdScores]
    calibration: list[CalibrationBin]


def train_classifier(
    positive: Sequence[str],
    negative: Sequence[str],
    out: Path,
    *,
    text_field: str,
    options: ClassifierOptions,
    report: Callable[[str], None],
) -> TrainedClassifier:
    """Learn from the documents of two sets of paths, and write the classifier.

    Args:
        positive: paths of documents that should get a high score.
        negative: paths of the others.
        out: the file to write.
        text_field: the field or column of the text, in JSON lines and Parquet.
        options: how it is trained.
        report: called with lines of progress.

    Raises:
        BigtrainError: a file cannot be read, a set has fewer than ten documents, or `out` cannot be written.
    """
    table = WordTable()
    examples = _Examples()
    for paths, is_positive, option in ((positive, True, "--positive"), (negative, False, "--negative")):
        before = len(examples.texts)
        examples.add(sample_documents(paths, text_field, option), table, positive=is_positive)
        require_documents(len(examples.texts) - before, FEWEST, option)
        report(f"{option.removeprefix('--')}: {len(examples.texts) - before:,} documents")
    positives, held_out = np.array(examples.positive), np.array(examples.held_out)
    for label, of_label in zip(LABELS, (positives, ~positives), strict=True):
        require_documents(int((of_label & held_out).sum()), 1, f"held out, {label}")
    words = table.most_frequent(options.max_words, options.min_count)
    rows, hashes = table.renumbered([word for word, _ in words]), word_hashes(table.words)
    features = [
        features_of(
            rows[text],
            hashes[text],
            words=len(words),
            word_ngrams=options.word_ngrams,
            buckets=options.buckets,
        )
        for text in examples.texts
    ]
    learned = _learn(features, positives, ~held_out, len(words) + options.buckets, options.l2)
    report(f"{learned.features:,} features")
    weights = (0.5 * learned.weights).astype(np.float32)
    counts = [int((positives & ~held_out).sum()), int((~positives & ~held_out).sum())]
    model = FastTextModel(
        words=words,
        labels=list(zip(LABELS, counts, strict=True)),
        word_ngrams=options.word_ngrams,
        buckets=options.buckets,
        weights=weights,
        label_weights=np.array([1, -1], np.float32),
    )
    model.write(out)
    tried = np.flatnonzero(held_out)
    scores = np.array([sigmoid(2 * weights[features[index]].mean(dtype=np.float64)) for index in tried])
    return _described(out, counts, learned.features, scores, positives[tried])


class _Examples:
    """The documents, as numbers of their words."""

    def __init__(self) -> None:
        self.texts: list[I32] = []
        self.positive: list[bool] = []
        self.held_out: list[bool] = []

    def add(self, documents: Iterable[Document], table: WordTable, *, positive: bool) -> None:
        for document in documents:
            self.texts.append(table.numbers_of(words_of_line(one_line(document.text))))
            self.positive.append(positive)
            self.held_out.append(is_held_out(document.file, document.position, HELD_OUT))


@dataclass(frozen=True)
class _Learned:
    weights: F64
    """A weight for each word and bucket. Those without an example have the bias alone."""
    features: int


def _learn(features: Sequence[I64], positive: Flags, learns: Flags, width: int, l2: float) -> _Learned:
    """Fit the weights. A text is a mean of its features, so a bias is a number that is added to all weights."""
    counted = [np.unique(own, return_counts=True) for own, learned in zip(features, learns, strict=True) if learned]
    columns = np.concatenate([column for column, _ in counted])
    values = np.concatenate([count / count.sum() for _, count in counted])
    starts = np.cumsum([0, *(len(column) for column, _ in counted)])[:-1]
    used, compact = np.unique(columns, return_inverse=True)
    found = fit(SparseRows(starts, compact, values, len(used)), positive[learns], l2)
    weights = np.full(width, found.bias)
    weights[used] += found.weights
    return _Learned(weights, len(used))


def _described(out: Path, counts: Sequence[int], features: int, scores: F64, positive: Flags) -> TrainedClassifier:
    share = float(positive.mean())
    safe = np.clip(scores, 1e-12, 1 - 1e-12)
    log_loss = -float(np.where(positive, np.log(safe), np.log1p(-safe)).mean())
    return TrainedClassifier(
        model=str(out),
        hash=file_digest(out),
        positive=counts[0],
        negative=counts[1],
        features=features,
        held_out=len(scores),
        accuracy=float(((scores >= 0.5) == positive).mean()),
        majority=max(share, 1 - share),
        auc=area_under_curve(scores, positive),
        log_loss=log_loss,
        thresholds=[_at_threshold(number / BINS, scores, positive) for number in range(1, BINS)],
        calibration=_calibration(scores, positive),
    )


def area_under_curve(scores: F64, positive: Flags) -> float:
    """The probability that a positive score is above a negative one; equal ones count half (Mann and Whitney 1947)."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    above = float(middle[ranks][positive].sum()) - positive.sum() * (positive.sum() + 1) / 2
    return above / float(positive.sum() * (~positive).sum())


def _at_threshold(threshold: float, scores: F64, positive: Flags) -> ThresholdScores:
    kept = scores >= threshold
    right = int((kept & positive).sum())
    precision = right / int(kept.sum()) if kept.any() else None
    return ThresholdScores(threshold, float(kept.mean()), precision, right / int(positive.sum()))


def _calibration(scores: F64, positive: Flags) -> list[CalibrationBin]:
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    return [
        CalibrationBin(
            number / BINS,
            (number + 1) / BINS,
            int(own.sum()),
            float(scores[own].mean()),
            float(positive[own].mean()),
        )
        for number in range(BINS)
        for own in [bins == number]
        if own.any()
    ]

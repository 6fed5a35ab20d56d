"""What a model of labels has to beat: the scores of the simplest predictors, on the same labels by the same metric.

classification        the most frequent class; logistic regression on which tokens a document has
token_classification  the most frequent tag; of each token the tag that it has most often
extractive_qa         the answer at the most frequent place of the context, of the most frequent length
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bigtrain.base import IGNORE_INDEX, BigtrainError
from bigtrain.config import ObjectiveChoice
from bigtrain.data import MicroBatch
from bigtrain.objective import AnswerMetric, ClassMetric, LabelMetric

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_SURE = 10.0
"""The logit of what a predictor chooses; of all else it is 0."""
Predictor = Callable[[I64, I64, I64], F64]
"""From token ids [N], labels [N], of which only the places count, and boundaries [D+1] to logits [N, L]."""


class LabelPredictors:
    """The baselines of an objective, learned from training batches."""

    def __init__(self, objective: ObjectiveChoice, metric: LabelMetric, train: Iterable[MicroBatch]) -> None:
        """Args:
            objective: the settings.
            metric: of the objective.
            train: batches of training rows, to learn from.

        Raises:
            BigtrainError: scikit-learn is missing.
        """
        self._metric = metric
        self._predictors = _predictors(objective, metric, [_arrays(batch) for batch in train])

    def scores(self, validation: Sequence[MicroBatch]) -> dict[str, dict[str, float]]:
        """The scores of each on exactly the labels of these batches."""
        wanted = [_arrays(batch) for batch in validation]
        scores = {}
        for name, predict in self._predictors.items():
            counts = sum(self._metric.counts(predict(*arrays), *arrays[1:]) for arrays in wanted)
            scores[name] = self._metric.scores(np.asarray(counts))
        return scores


def _predictors(
    objective: ObjectiveChoice, metric: LabelMetric, learned: Sequence[tuple[I64, I64, I64]]
) -> dict[str, Predictor]:
    labels = np.concatenate([labels[labels != IGNORE_INDEX] for _, labels, _ in learned])
    if isinstance(metric, AnswerMetric):
        return {"usual place": _usual_place(learned)}
    classes = metric.labels if isinstance(metric, ClassMetric) else int(labels.max()) + 1
    majority = int(np.bincount(labels).argmax())
    found: dict[str, Predictor] = {"majority": lambda ids, *_: _chosen(np.full(len(ids), majority), classes)}
    if objective.name == "classification":
        found["bag of tokens"] = _bag_of_tokens(learned, classes)
    else:
        found["tag of token"] = _tag_of_token(learned, classes, majority)
    return found


def _bag_of_tokens(learned: Sequence[tuple[I64, I64, I64]], classes: int) -> Predictor:
    """Logistic regression on which tokens occur in a document."""
    if find_spec("sklearn") is None:
        raise BigtrainError("the baseline of classes needs scikit-learn", fix="pip install 'bigtrain[evaluation]'")
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    vocabulary = 1 + max(int(ids.max()) for ids, _, _ in learned)

    def bags(documents: Sequence[I64]) -> Any:
        known = [np.unique(document[document < vocabulary]) for document in documents]
        ends = np.cumsum([0, *(len(tokens) for tokens in known)])
        tokens = np.concatenate([*known, np.empty(0, np.int64)]).astype(np.int64)
        return csr_matrix((np.ones(len(tokens)), tokens, ends), shape=(len(known), vocabulary))

    texts, labels = [], []
    for ids, given, boundaries in learned:
        for document, label, _ in _labelled(ids, given, boundaries):
            texts.append(document)
            labels.append(label)
    model = LogisticRegression(max_iter=2000).fit(bags(texts), labels)

    def predict(ids: I64, labels: I64, boundaries: I64) -> F64:
        logits = np.zeros((len(ids), classes))
        documents = list(_labelled(ids, labels, boundaries))
        if documents:
            guesses = model.predict(bags([document for document, _, _ in documents]))
            logits[[place for _, _, place in documents], guesses] = _SURE
        return logits

    return predict


def _tag_of_token(learned: Sequence[tuple[I64, I64, I64]], classes: int, majority: int) -> Predictor:
    """Of each token the tag that it has most often; of an unknown one the most frequent of all."""
    vocabulary = 1 + max(int(ids.max()) for ids, _, _ in learned)
    counts = np.zeros((vocabulary, classes), np.int64)
    for ids, labels, _ in learned:
        places = labels != IGNORE_INDEX
        np.add.at(counts, (ids[places], labels[places]), 1)
    usual = np.where(counts.any(axis=1), counts.argmax(axis=1), majority)

    def predict(ids: I64, labels: I64, boundaries: I64) -> F64:
        known = ids < vocabulary
        return _chosen(np.where(known, usual[np.where(known, ids, 0)], majority), classes)

    return predict


def _usual_place(learned: Sequence[tuple[I64, I64, I64]]) -> Predictor:
    """The start and end, counted from the end of the document, that answers have most often."""
    places: Counter[tuple[int, int]] = Counter()
    for _, labels, boundaries in learned:
        for first, end in pairwise(boundaries.tolist()):
            answered = np.flatnonzero(labels[first:end] > 0)
            if len(answered):
                places[(end - first - int(answered[0]), end - first - int(answered[-1]))] += 1
    start, last = places.most_common(1)[0][0] if places else (0, 0)

    def predict(ids: I64, labels: I64, boundaries: I64) -> F64:
        logits = np.zeros((len(ids), 2))
        for first, end in pairwise(boundaries.tolist()):
            logits[max(first, end - start), 0] = logits[max(first, end - last), 1] = _SURE
        return logits

    return predict


def _chosen(classes: I64, count: int) -> F64:
    logits = np.zeros((len(classes), count))
    logits[np.arange(len(classes)), classes] = _SURE
    return logits


def _labelled(ids: I64, labels: I64, boundaries: I64) -> Iterator[tuple[I64, int, int]]:
    """Of each document with a label: its tokens, the label, and where that stands."""
    for place in np.flatnonzero(labels != IGNORE_INDEX).tolist():
        number = int(boundaries.searchsorted(place, "right")) - 1
        yield ids[boundaries[number] : boundaries[number + 1]], int(labels[place]), place


def _arrays(batch: MicroBatch) -> tuple[I64, I64, I64]:
    """Token ids and labels [N], and boundaries [D+1], of the texts that are read: of an encoder-decoder its encoder's.

    Its rows are as long as those of the decoder, so labels stand at the same places.
    """
    read = batch.others.get("encoder_input_ids", batch.input_ids)
    ids, labels, boundaries = (_flat(each) for each in (read, batch.labels, batch.cu_seqlens))
    return ids, labels, boundaries


def _flat(tensor: Any) -> I64:
    flat: I64 = tensor.numpy().reshape(-1).astype(np.int64)
    return flat

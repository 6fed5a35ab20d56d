"""How well labels are predicted, as counts that add over batches and ranks, and as scores that follow from the sums.

    classification        counts of (label, predicted): accuracy, F1, Matthews
    token_classification  right, predicted and true entities of each type: their F1 as seqeval has it
    extractive_qa         exact matches, and the shares of tokens in common: as SQuAD's script, on tokens

No score is a mean of means: the counts of any division of the documents give the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bigtrain.base import IGNORE_INDEX
from bigtrain.config import ObjectiveChoice
from bigtrain.objective.labelled import END, START

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
LONGEST_ANSWER = 30
"""Tokens of an answer that is predicted, at most (as in Devlin et al.'s code)."""
Entity = tuple[str, int, int]
"""Type, first tag and last one."""


class LabelMetric(Protocol):
    """Counts, and the scores that follow from their sums."""

    def counts(self, logits: F64, labels: I64, boundaries: I64) -> F64:
        """The counts of some whole documents.

        Args:
            logits: [N, L] of all tokens.
            labels: [N], IGNORE_INDEX where there is none.
            boundaries: [D+1], where documents start among the tokens, and N.
        """

    def scores(self, counts: F64) -> dict[str, float]:
        """The scores, by name, from summed counts."""


@dataclass(frozen=True)
class ClassMetric:
    """Of classes: a confusion matrix."""

    labels: int

    def counts(self, logits: F64, labels: I64, boundaries: I64) -> F64:
        """See `LabelMetric.counts`."""
        places = np.flatnonzero(labels != IGNORE_INDEX)
        pairs = labels[places] * self.labels + logits[places].argmax(axis=1)
        return np.bincount(pairs, minlength=self.labels**2).astype(np.float64)

    def scores(self, counts: F64) -> dict[str, float]:
        """Accuracy, the mean F1 of the classes (macro), that of class 1 where there are two, and Matthews' correlation
        (Gorodkin, 2004)."""
        matrix = counts.reshape(self.labels, self.labels)
        true, predicted, right = matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)
        total = matrix.sum()
        f1 = np.divide(2 * right, true + predicted, out=np.zeros(self.labels), where=true + predicted > 0)
        occurring = true + predicted > 0
        covariance = right.sum() * total - true @ predicted
        spread = math.sqrt((total**2 - true @ true) * (total**2 - predicted @ predicted))
        scores = {
            "accuracy": float(right.sum() / total),
            "macro_f1": float(f1[occurring].mean()),
            "matthews": float(covariance / spread) if spread else 0.0,
        }
        return scores | ({"f1": float(f1[1])} if self.labels == 2 else {})


@dataclass(frozen=True)
class TagMetric:
    """Of tags such as B-PER and I-PER: entities of each type that are right, predicted and true; and of all tags."""

    names: Sequence[str]
    """Of the tags, by their numbers."""

    @property
    def types(self) -> list[str]:
        """The types of entities, in alphabetical order."""
        return sorted({_split(name)[1] for name in self.names if name != "O"})

    def counts(self, logits: F64, labels: I64, boundaries: I64) -> F64:
        """See `LabelMetric.counts`."""
        number = {kind: index for index, kind in enumerate(self.types)}
        counted = np.zeros((3, len(number)))
        places = np.flatnonzero(labels != IGNORE_INDEX)
        predicted, wanted = logits[places].argmax(axis=1), labels[places]
        for first, end in _documents(places, boundaries):
            true = set(entities([self.names[tag] for tag in wanted[first:end].tolist()]))
            guessed = set(entities([self.names[tag] for tag in predicted[first:end].tolist()]))
            for row, found in enumerate((true & guessed, guessed, true)):
                for kind, _, _ in found:
                    counted[row, number[kind]] += 1
        tags = np.array([np.count_nonzero(predicted == wanted), len(places)], np.float64)
        return np.concatenate((counted.reshape(-1), tags))

    def scores(self, counts: F64) -> dict[str, float]:
        """Precision, recall and F1 over all entities (micro), the mean F1 of types (macro), accuracy of the tags."""
        by_type, right_tags, tags = counts[:-2].reshape(3, -1), counts[-2], counts[-1]
        right, predicted, true = by_type.sum(axis=1)
        occurring = by_type[2] > 0
        f1 = np.divide(2 * by_type[0], by_type[1] + by_type[2], out=np.zeros(by_type.shape[1]), where=occurring)
        return {
            "f1": _ratio(2 * right, predicted + true),
            "precision": _ratio(right, predicted),
            "recall": _ratio(right, true),
            "macro_f1": float(f1[occurring].mean()) if occurring.any() else 0.0,
            "accuracy": _ratio(right_tags, tags),
        }


@dataclass(frozen=True)
class AnswerMetric:
    """Of answers in their contexts: how many are found exactly, and how many tokens they have in common."""

    def counts(self, logits: F64, labels: I64, boundaries: I64) -> F64:
        """See `LabelMetric.counts`."""
        exact, common, documents = 0, 0.0, 0
        for first, end in zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True):
            own = np.where(labels[first:end] == IGNORE_INDEX, 0, labels[first:end])
            if not own.any():
                continue
            wanted = int(np.flatnonzero(own & START)[0]), int(np.flatnonzero(own & END)[0])
            start, last, _ = best_span(logits[first:end])
            found = start, last
            exact += found == wanted
            common += overlap(found, wanted)
            documents += 1
        return np.array([exact, common, documents], np.float64)

    def scores(self, counts: F64) -> dict[str, float]:
        """The share of exact matches, and the mean F1 of the tokens in common."""
        exact, common, documents = counts
        return {"exact_match": _ratio(exact, documents), "f1": _ratio(common, documents)}


def make_metric(objective: ObjectiveChoice, label_names: Sequence[str]) -> LabelMetric | None:
    """The metric of an objective; None where its labels are tokens.

    Args:
        objective: the settings.
        label_names: of classes or tags, by their numbers; none for other labels.
    """
    if objective.name == "classification":
        return ClassMetric(len(label_names))
    if objective.name == "token_classification":
        return TagMetric(tuple(label_names))
    return AnswerMetric() if objective.name == "extractive_qa" else None


def entities(tags: Sequence[str]) -> Iterator[Entity]:
    """The entities that the tags of a sentence mark, as seqeval's default finds them.

    An entity goes on with a tag I (or E) of the same type, and starts with any other: so I after another type, or after
    O, starts one, too. S and E end one.
    """
    first, before = 0, ("O", "")
    for place, tag in enumerate((*tags, "O")):
        now = _split(tag)
        if before[0] != "O" and not _continues(before, now):
            yield before[1], first, place - 1
        if now[0] != "O" and not _continues(before, now):
            first = place
        before = now


class Span(NamedTuple):
    """A place of an answer."""

    start: int
    end: int
    """Its last token."""
    score: float
    """The sum of both logits."""


def best_span(logits: F64, longest: int = LONGEST_ANSWER, *, anywhere: bool = False) -> Span:
    """The start and end of the likeliest answer in a document, the first token for both where that is no answer.

    Args:
        logits: [T, 2], of starts and of ends.
        longest: tokens of an answer, at most.
        anywhere: the first token may be part of an answer: the logits are those of a context alone.
    """
    ends = np.concatenate((logits[:, 1], np.full(longest - 1, -np.inf)))
    sums = logits[:, :1] + np.lib.stride_tricks.sliding_window_view(ends, longest)  # [T, longest], by start and length
    if not anywhere:
        sums[0, 1:] = -np.inf  # the first token is the answer where there is none, or is no part of one
    start, further = divmod(int(sums.argmax()), longest)
    return Span(start, start + further, float(sums[start, further]))


def overlap(found: tuple[int, int], wanted: tuple[int, int]) -> float:
    """F1 of the tokens that two spans have in common."""
    common = min(found[1], wanted[1]) - max(found[0], wanted[0]) + 1
    return max(0.0, 2 * common / (found[1] - found[0] + wanted[1] - wanted[0] + 2))


def _split(tag: str) -> tuple[str, str]:
    """Prefix and type: B-PER is B and PER."""
    prefix, _, kind = tag.partition("-")
    return (prefix, kind or "_")


def _continues(before: tuple[str, str], now: tuple[str, str]) -> bool:
    """Whether a tag goes on with the entity of the tag before it."""
    return before[0] in ("B", "I") and now[0] in ("I", "E") and before[1] == now[1]


def _documents(places: I64, boundaries: I64) -> Iterator[tuple[int, int]]:
    """The labelled places of each document, as ranges of `places`."""
    bounds = places.searchsorted(boundaries)
    yield from zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0

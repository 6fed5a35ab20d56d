"""Exact match and F1 of answers as texts, as SQuAD's scripts have them (Rajpurkar et al., 2016 and 2018).

Texts are compared in small letters, without punctuation, articles and double spaces. Of several right answers the
nearest one counts. A question without an answer is right where nothing is answered.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class AnswerScores:
    """Of all questions; each from 0 to 100."""

    questions: int
    exact_match: float
    f1: float
    exact_match_without_answer: float | None = None
    """Of the questions without an answer; None where there are none."""


def answer_scores(answers: Mapping[str, str], right: Mapping[str, Sequence[str]]) -> AnswerScores:
    """The scores of answers.

    Args:
        answers: by question; one that is missing counts as wrong, "" says that there is no answer.
        right: the right answers by question; none where the question has no answer.
    """
    exact, f1 = {}, {}
    for question, wanted in right.items():
        found = answers.get(question)
        # Of these texts, some may be nothing but articles: the script leaves them out.
        texts = [text for text in wanted if normalised(text)] or [""]
        exact[question] = 0.0 if found is None else max(float(normalised(found) == normalised(text)) for text in texts)
        f1[question] = 0.0 if found is None else max(token_f1(found, text) for text in texts)
    without = [question for question, wanted in right.items() if not wanted]
    return AnswerScores(
        questions=len(right),
        exact_match=_percent(list(exact.values())),
        f1=_percent(list(f1.values())),
        exact_match_without_answer=_percent([exact[question] for question in without]) if without else None,
    )


def normalised(text: str) -> str:
    """What of a text is compared."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(found: str, wanted: str) -> float:
    """F1 of the words that two texts have in common; of two texts without words 1."""
    one, other = normalised(found).split(), normalised(wanted).split()
    if not one or not other:
        return float(one == other)
    common = sum((Counter(one) & Counter(other)).values())
    return 2 * common / (len(one) + len(other))


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values) if values else 0.0

"""Promises of the scores of answers: they are those of SQuAD's script."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.trained.answer_scores import answer_scores, normalised, token_f1

words = st.lists(st.sampled_from(["the", "a", "An", "dog", "Dog,", "cat", "...", "cat's", "runs"]), max_size=6)
texts = words.map(" ".join)
with_words = texts.filter(lambda text: bool(normalised(text)))


@given(st.lists(st.tuples(with_words, st.lists(with_words, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_scores_are_those_of_torchmetrics(questions: list[tuple[str, list[str]]]) -> None:
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    predictions = [{"prediction_text": found, "id": str(n)} for n, (found, _) in enumerate(questions)]
    targets = [
        {"answers": {"answer_start": [0] * len(right), "text": right}, "id": str(n)}
        for n, (_, right) in enumerate(questions)
    ]
    wanted = squad(predictions, targets)
    found = answer_scores(
        {str(n): text for n, (text, _) in enumerate(questions)},
        {str(n): right for n, (_, right) in enumerate(questions)},
    )
    assert found.exact_match == pytest.approx(float(wanted["exact_match"]), rel=1e-5)
    assert found.f1 == pytest.approx(float(wanted["f1"]), rel=1e-5)


def test_a_question_without_an_answer_is_right_where_nothing_is_answered() -> None:
    scores = answer_scores({"1": "", "2": "a dog", "3": "dog"}, {"1": [], "2": [], "3": ["the dog"], "4": ["x"]})
    assert (scores.questions, scores.exact_match, scores.f1) == (4, 50.0, 50.0)
    assert scores.exact_match_without_answer == 50.0


def test_texts_without_words_are_equal_to_each_other_alone() -> None:
    assert token_f1("the", "") == 1.0 and token_f1("dog", "a") == 0.0

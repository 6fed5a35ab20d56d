"""Promises of the best evaluation: which one it is, and that it survives restarts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bigtrain.base import BigtrainError
from bigtrain.train.best_step import BestStep, mean_of
from bigtrain.trained import SourceLoss


def source(loss: float, tokens: int = 10, **metrics: float) -> SourceLoss:
    return replace(SourceLoss.of("a source", loss, tokens), metrics=metrics or None)


def test_less_loss_is_better_and_what_follows_is_counted() -> None:
    best = BestStep()
    for step, loss in ((2, 3.0), (4, 2.5), (6, 2.6), (8, 2.5)):
        best = best.after(step, "loss", [source(loss)])
    assert best == BestStep(4, "loss", 2.5, 8, worse=2)
    assert best.after(10, "loss", [source(1.0)]).worse == 0


def test_more_of_another_metric_is_better() -> None:
    best = BestStep().after(1, "f1", [source(1.0, f1=0.5)]).after(2, "f1", [source(0.5, f1=0.4)])
    assert (best.step, best.value, best.worse) == (1, 0.5, 1)


def test_an_evaluation_that_is_repeated_counts_once() -> None:
    best = BestStep().after(1, "loss", [source(1.0)]).after(2, "loss", [source(2.0)])
    assert best.after(2, "loss", [source(2.0)]) == best


def test_with_another_metric_the_comparison_starts_over() -> None:
    best = BestStep().after(1, "loss", [source(0.1, f1=0.2)])
    assert best.after(2, "f1", [source(0.2, f1=0.15)]) == BestStep(2, "f1", 0.15, 2)


def test_sources_count_by_their_labels() -> None:
    assert mean_of("loss", [source(1.0, 10), source(4.0, 20)]) == pytest.approx(3.0)
    assert mean_of("f1", [source(1.0, 10, f1=0.0), source(4.0, 30, f1=1.0)]) == pytest.approx(0.75)


def test_a_metric_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(BigtrainError) as error:
        mean_of("bleu", [source(1.0, accuracy=0.5)])
    assert "bleu" in str(error.value) and "loss, accuracy" in str(error.value)


def test_the_state_in_a_checkpoint_gives_it_back() -> None:
    best = BestStep().after(1, "f1", [source(1.0, f1=0.5)])
    assert BestStep.of(best.as_json()) == best and BestStep.of({}) == BestStep()

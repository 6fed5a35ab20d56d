"""Validation: the mean loss over the held-out documents of each source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

import numpy as np
import torch
from pydantic import Field

from bigtrain.base import to_json
from bigtrain.config import Settings
from bigtrain.data import MicroBatch, RunData
from bigtrain.engine import Engine, Topology
from bigtrain.model import LanguageModel
from bigtrain.objective import make_metric
from bigtrain.rundir import SourceValidation
from bigtrain.trained.answer_scores import AnswerScores
from bigtrain.trained.label_scores import LabelScores
from bigtrain.trained.translation import TranslationScores


@dataclass(frozen=True)
class SourceLoss:
    """The validation loss of one source."""

    name: Annotated[str, Field(alias="source")]
    loss: float
    """Mean over the labelled tokens, in nats."""
    perplexity: float
    """exp(loss), per token of the tokenizer."""
    tokens: int
    unigram_perplexity: Annotated[float | None, Field(alias="unigram perplexity")] = None
    """Of a unigram model on the same labels, where baselines were asked for."""
    five_gram_perplexity: Annotated[float | None, Field(alias="5-gram perplexity")] = None
    """Of a 5-gram model, likewise."""
    metrics: dict[str, float] | None = None
    """How well labels that are not tokens are predicted, by the names of the objective's metrics."""
    baseline_metrics: Annotated[dict[str, dict[str, float]] | None, Field(alias="baseline metrics")] = None
    """The same of the simplest predictors of labels, by their names, where baselines were asked for."""
    accuracy: float | None = None
    """Share of the labels that are the likeliest token; only where labels are not the next tokens of a text."""
    sentence_accuracy: Annotated[float | None, Field(alias="sentence accuracy")] = None
    """Share of the pairs of segments whose relation is right, where an objective asks for it. Guessing has a half."""
    unigram_accuracy: Annotated[float | None, Field(alias="unigram accuracy")] = None
    """Of the label that is the most frequent one in training, given at each position."""
    run_perplexities: Annotated[dict[str, float] | None, Field(alias="run perplexities")] = None
    """Of other runs on the same labels, by their run directories, where any were given."""

    @classmethod
    def of(cls, name: str, loss: float, tokens: int) -> SourceLoss:
        """The loss of a source, in nats."""
        return cls(name, loss, math.exp(loss) if loss < 700 else math.inf, tokens)

    def as_record(self) -> SourceValidation:
        """For JSON."""
        record: SourceValidation = to_json(self)
        return record


@dataclass(frozen=True)
class Evaluation:
    """The validation losses of a checkpoint, as in RUN/evaluation.json."""

    run: str
    step: int
    validation: list[SourceLoss]
    translations: list[TranslationScores] | None = None
    """Of held-out pairs, where they were asked for."""
    answers: AnswerScores | None = None
    """Of the questions of a file, where one was given."""


def sum_of_losses(
    loss_sum: Callable[[Mapping[str, Any]], torch.Tensor], batches: Iterable[MicroBatch], device: torch.device
) -> tuple[float, int]:
    """Sum the loss of a model over batches.

    Args:
        loss_sum: gives the summed loss of one micro-batch's labelled tokens.
        batches: the micro-batches.
        device: where the model is.

    Returns:
        The summed loss, in nats, and the number of labelled tokens.
    """
    total, tokens = 0.0, 0
    for batch in batches:
        total += loss_sum(batch.to(device).model_inputs()).flatten()[0].item()
        tokens += batch.label_tokens
    return total, tokens


def validation_losses(
    engine: Engine,
    topology: Topology,
    data: RunData,
    settings: Settings,
    beat: Callable[[], None] = lambda: None,
) -> list[SourceLoss]:
    """The validation loss of every source that has held-out documents, summed over all ranks.

    Args:
        beat: called before every batch.
    """

    def evaluate(inputs: Mapping[str, Any]) -> torch.Tensor:
        beat()
        return engine.evaluate(inputs)

    model = cast(LanguageModel, engine.module)
    metric = make_metric(settings.objective, () if data.labels is None else data.labels.names)
    losses = []
    for name, batches in data.validation(settings, topology.data_rank, topology.data_size):
        with LabelScores(model, metric) as found:
            loss, tokens = sum_of_losses(evaluate, batches, topology.device)
        counted = tokens if topology.shard_rank == 0 else 0
        loss, all_tokens, *counts = topology.sum_across_ranks([loss, float(counted), *found.counts.tolist()])
        if all_tokens:
            row = SourceLoss.of(name, loss / all_tokens, int(all_tokens))
            losses.append(replace(row, metrics=found.scores(np.array(counts))))
    return losses

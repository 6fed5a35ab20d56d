"""Validation: the mean loss over the held-out documents of each source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bigtrain.config import Settings
from bigtrain.data import Dataset, MicroBatch, validation_batches
from bigtrain.engine.engine import Engine
from bigtrain.engine.topology import Topology


@dataclass(frozen=True)
class SourceLoss:
    """The validation loss of one source."""

    name: str
    loss: float
    """Mean over the labelled tokens, in nats."""
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss), per token of the tokenizer."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return {"source": self.name, "loss": self.loss, "perplexity": self.perplexity, "tokens": self.tokens}


def sum_of_losses(
    loss_sum: Callable[[Mapping[str, Any]], torch.Tensor], batches: Iterable[MicroBatch], device: torch.device
) -> tuple[float, int]:
    """Add up a model's loss over batches.

    Args:
        loss_sum: gives the summed loss of one micro-batch's labelled tokens.
        batches: the micro-batches.
        device: where the model is.

    Returns:
        The summed loss, in nats, and the number of labelled tokens.
    """
    total, tokens = 0.0, 0
    for batch in batches:
        total += loss_sum(batch.to(device).model_inputs()).item()
        tokens += batch.label_tokens
    return total, tokens


def validation_losses(
    engine: Engine,
    topology: Topology,
    held_out: list[Dataset],
    settings: Settings,
    beat: Callable[[], None] = lambda: None,
) -> list[SourceLoss]:
    """The validation loss of every source that has held-out documents, over all ranks together.

    Args:
        beat: called before every batch.
    """

    def evaluate(inputs: Mapping[str, Any]) -> torch.Tensor:
        beat()
        return engine.evaluate(inputs)

    losses = []
    for dataset in held_out:
        batches = validation_batches(
            dataset,
            sequence_length=settings.data.sequence_length,
            max_sequences=settings.evaluate.max_sequences,
            micro_batch_size=settings.validation_batch_size,
            rank=topology.data_rank,
            world_size=topology.data_size,
        )
        loss, tokens = sum_of_losses(evaluate, batches, topology.device)
        counted = tokens if topology.shard_rank == 0 else 0
        loss, all_tokens = topology.sum_across_ranks([loss, float(counted)])
        if all_tokens:
            losses.append(SourceLoss(dataset.name, loss / all_tokens, int(all_tokens)))
    return losses

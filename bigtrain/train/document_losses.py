"""The loss of each document in a global batch, to find the text that a high loss comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bigtrain.base import IGNORE_INDEX, gather, on_every_rank
from bigtrain.config import Settings
from bigtrain.data import DocumentPart, RankBatch, RunData, SampleContents, contents_of
from bigtrain.engine import Engine, Topology
from bigtrain.rundir import record_of

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DocumentLoss:
    """A part of a document in a sample, and the loss on it."""

    sample: SampleContents
    part: DocumentPart
    tokens: int
    """Tokens of the part that have a label."""
    loss: float
    """Mean over these tokens, in nats; 0 where there are none."""

    def as_record(self, tokenizer: Tokenizer | None = None, *, excerpt: int | None = None) -> dict[str, Any]:
        """For JSON; with a tokenizer, the text too, or its first `excerpt` characters."""
        record = {
            "loss": self.loss,
            "loss_tokens": self.tokens,
            "source": self.sample.dataset.name,
            "sample": self.sample.sample,
            **record_of(self.part, tokenizer),
        }
        if tokenizer is not None:
            record["text"] = record["text"][:excerpt]
        return record


def documents_by_loss(
    engine: Engine, topology: Topology, data: RunData, settings: Settings, step: int
) -> list[DocumentLoss]:
    """The documents of a step's global batch under the current weights, highest loss first. Every rank calls it.

    Args:
        data: in the order that the step is counted in.
        settings: of the run.
        step: from 1.

    Raises:
        BigtrainError: on every rank, when any cannot read its share.
    """
    samples = data.plan.batches.samples_of(step)
    with closing(
        data.loader(
            settings.train.micro_batch_size, samples.start, rank=topology.data_rank, world_size=topology.data_size
        )
    ) as loader:
        batch = on_every_rank(topology, lambda: next(loader))
    losses, labelled = losses_of_rows(engine, topology, batch)
    return by_document(contents_of(data.plan, data.train, samples), losses, labelled)


def losses_of_rows(engine: Engine, topology: Topology, batch: RankBatch) -> tuple[F32, npt.NDArray[np.bool_]]:
    """The loss of every token of the global batch, [samples, T], and whether it has a label, on every rank."""
    losses = [engine.token_losses(m.to(topology.device).model_inputs()).cpu().numpy() for m in batch.micro_batches]
    labelled = [m.labels.numpy() != IGNORE_INDEX for m in batch.micro_batches]
    of_ranks = topology.broadcast(gather(topology, (np.concatenate(losses), np.concatenate(labelled))))
    groups = [
        of_ranks[first : first + topology.sharing.size] for first in range(0, len(of_ranks), topology.sharing.size)
    ]
    rows = [
        np.concatenate([losses for losses, _ in group], axis=1) if topology.sequence_size > 1 else group[0][0]
        for group in groups
    ]
    return np.concatenate(rows), np.concatenate([group[0][1] for group in groups])


def by_document(contents: Sequence[SampleContents], losses: F32, labelled: npt.NDArray[np.bool_]) -> list[DocumentLoss]:
    """The documents of a batch, highest mean loss first, from the losses of its tokens [samples, T]."""
    found = []
    for sample, of_row, has_label in zip(contents, losses, labelled, strict=True):
        end = 0
        for part in sample.parts:
            start, end = end, end + part.end - part.start
            tokens = int(has_label[start:end].sum())
            total = float(of_row[start:end].sum(dtype=np.float64))
            found.append(DocumentLoss(sample, part, tokens, total / tokens if tokens else 0.0))
    return sorted(found, key=lambda document: -math.inf if math.isnan(document.loss) else -document.loss)

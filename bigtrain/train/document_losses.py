"""The loss of each document in a global batch, to find the text that a high loss comes from.

A rank adds up the documents of its own rows, and needs only their boundaries for it. Rank 0 looks up what the documents
are, and only of those that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from heapq import nsmallest
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from tokenizers import Tokenizer

from bigtrain.base import IGNORE_INDEX, on_every_rank
from bigtrain.config import Settings
from bigtrain.data import DocumentPart, MicroBatch, RankBatch, RunData, SampleContents, contents_of
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


@dataclass(frozen=True)
class PartLoss:
    """The loss on a part of a document, which is known by its position in the global batch."""

    position: int
    """Of the sample in the global batch, from 0."""
    part: int
    """Of the documents in the sample, from 0."""
    tokens: int
    """Tokens of the part that have a label."""
    loss: float
    """Mean over these tokens, in nats; 0 where there are none."""

    @property
    def order(self) -> tuple[float, int, int]:
        """Sorts parts by their loss, highest first; one that is not a number is before all others."""
        return (-math.inf if math.isnan(self.loss) else -self.loss, self.position, self.part)


def documents_by_loss(
    engine: Engine, topology: Topology, data: RunData, settings: Settings, step: int, most: int
) -> list[DocumentLoss]:
    """The documents with the highest loss in a step's global batch under the current weights. Every rank calls it.

    Args:
        data: in the order that the step is counted in.
        settings: of the run.
        step: from 1.
        most: how many documents.

    Returns:
        On rank 0 the documents, highest loss first; elsewhere nothing.

    Raises:
        BigtrainError: on every rank, when any cannot read its share; on rank 0, when it cannot read the documents.
    """
    samples = data.plan.batches.samples_of(step)
    with closing(
        data.loader(
            settings.train.micro_batch_size, samples.start, rank=topology.data_rank, world_size=topology.data_size
        )
    ) as loader:
        batch = on_every_rank(topology, lambda: next(loader))

    def worst(parts: Iterable[PartLoss]) -> list[PartLoss]:
        return nsmallest(most, parts, key=lambda part: part.order)

    found = topology.reduce(worst(losses_of_parts(engine, topology, batch)), lambda a, b: worst([*a, *b]))
    return documents_of(data, samples, found) if found is not None else []


def losses_of_parts(engine: Engine, topology: Topology, batch: RankBatch) -> list[PartLoss]:
    """The losses of the parts of documents in this rank's rows; nothing on ranks that share the rows of another one.

    Every rank calls it: a forward pass is collective.
    """
    found = []
    first = topology.data_rank * sum(len(micro_batch.labels) for micro_batch in batch.micro_batches)
    for micro_batch in batch.micro_batches:
        losses = _of_whole_rows(topology, engine.token_losses(micro_batch.to(topology.device).model_inputs()))
        if topology.shard_rank == 0:
            found += _parts_of(losses, micro_batch, first)
        first += len(micro_batch.labels)
    return found


def _of_whole_rows(topology: Topology, losses: torch.Tensor) -> F32:
    """The losses of tokens [rows, T] from those of this rank's piece of each sequence."""
    if topology.sequence_size > 1:
        pieces = [torch.empty_like(losses) for _ in range(topology.sequence_size)]
        dist.all_gather(pieces, losses.contiguous(), group=topology.sharing.group)
        losses = torch.cat(pieces, dim=1)
    return losses.cpu().numpy()


def _parts_of(losses: F32, micro_batch: MicroBatch, first: int) -> list[PartLoss]:
    """The parts in rows [rows, T], of which `first` is the position of the first one. Padding is the last part."""
    labelled, length = micro_batch.labels.numpy() != IGNORE_INDEX, losses.shape[1]
    bounds = micro_batch.cu_seqlens.tolist()
    found, row, part = [], 0, 0
    for begin, end in pairwise(bounds):
        if begin // length != row:
            row, part = begin // length, 0
        own = slice(begin - row * length, end - row * length)
        tokens = int(labelled[row, own].sum())
        total = float(losses[row, own].sum(dtype=np.float64))
        found.append(PartLoss(first + row, part, tokens, total / tokens if tokens else 0.0))
        part += 1
    return found


def documents_of(data: RunData, samples: range, parts: Sequence[PartLoss]) -> list[DocumentLoss]:
    """The documents of some parts of a global batch of these samples, in the order of the parts; no padding."""
    positions = sorted({part.position for part in parts})
    contents = contents_of(data.plan, data.train, [samples[position] for position in positions])
    of_position = dict(zip(positions, contents, strict=True))
    return [
        DocumentLoss(sample, sample.parts[part.part], part.tokens, part.loss)
        for part in parts
        for sample in [of_position[part.position]]
        if part.part < len(sample.parts)
    ]

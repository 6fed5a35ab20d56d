"""Provenance: which documents are in a batch, and in which samples a document is. Both in closed form.

    sample number --plan--> source, epoch, sequence --packing--> tokens of the stream --*.doc--> documents
    document --*.doc--> tokens of the stream --packing--> sequences --plan, backwards--> sample numbers

Nothing is replayed: the cost depends on the batch, or on how often the document comes, and not on the size of the
data; only finding a document by its id reads the column of ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bigtrain.data.batch import digest_row, format_digest
from bigtrain.data.plan import Plan
from bigtrain.data.store import Dataset, Tokens
from bigtrain.data.stored_document import StoredDocument, documents_between


@dataclass(frozen=True)
class DocumentPart:
    """The part of a document that is visible in a sample: its tokens [start, end)."""

    document: StoredDocument
    start: int
    end: int

    @property
    def token_ids(self) -> Tokens:
        """[end - start], a view of the shard."""
        return self.document.read(self.start, self.end)


@dataclass(frozen=True)
class SampleContents:
    """What one sample of a global batch consists of."""

    position: int
    """Its place in the global batch, from 0."""
    sample: int
    """Its global sample number."""
    dataset: Dataset
    epoch: int
    sequence: int
    parts: list[DocumentPart]
    padding: int
    """Tokens of the row behind the last document."""

    @property
    def token_ids(self) -> npt.NDArray[np.uint32]:
        """[T], the row as the model sees it."""
        padding = np.full(self.padding, self.dataset.end_of_text, np.uint32)
        return np.concatenate([*(part.token_ids for part in self.parts), padding]).astype(np.uint32, copy=False)


@dataclass(frozen=True)
class Appearance:
    """One sample that a document is in, with its tokens [start, end)."""

    sample: int
    epoch: int
    sequence: int
    start: int
    end: int


def contents_of(plan: Plan, datasets: Sequence[Dataset], samples: range) -> list[SampleContents]:
    """The documents in a global batch of these sample numbers.

    Args:
        plan: the order of the samples.
        datasets: the training datasets that the plan was made from, in its order.
        samples: the global batch.
    """
    addresses = plan.locate_many(np.arange(samples.start, samples.stop))
    contents = []
    for position, (source, epoch, sequence) in enumerate(zip(*(field.tolist() for field in addresses), strict=True)):
        dataset = datasets[source]
        start, end = _tokens_of(dataset, sequence, plan.sequence_length)
        parts = [
            DocumentPart(document, max(start - first, 0), min(end, document.end) - first)
            for document in documents_between(dataset, start, end)
            for first in [document.start]
        ]
        padding = plan.sequence_length - (end - start)
        contents.append(SampleContents(position, samples[position], dataset, epoch, sequence, parts, padding))
    return contents


def digest_of(contents: Sequence[SampleContents]) -> str:
    """The batch digest (16 hexadecimal digits), from the tokens of the documents in the batch."""
    return format_digest(sum(digest_row(sample.token_ids, sample.position) for sample in contents))


def appearances_of(plan: Plan, document: StoredDocument, *, before: int) -> list[Appearance]:
    """Where a training document is among the first `before` samples, in their order."""
    names = [source.name for source in plan.sources]
    start, end = document.start, document.end
    sequences = np.arange(start // plan.sequence_length, (end - 1) // plan.sequence_length + 1)
    occurrences = plan.samples_of(names.index(document.dataset.name), sequences, before=before)
    appearances = []
    for sample, epoch, sequence in zip(*(field.tolist() for field in occurrences), strict=True):
        first, last = _tokens_of(document.dataset, sequence, plan.sequence_length)
        appearances.append(Appearance(sample, epoch, sequence, max(first, start) - start, min(last, end) - start))
    return appearances


def _tokens_of(dataset: Dataset, sequence: int, sequence_length: int) -> tuple[int, int]:
    """The tokens [start, end) of the stream that concat packing puts into a sequence."""
    start = sequence * sequence_length
    return start, min(start + sequence_length, dataset.tokens)

"""Provenance: the documents in a batch, and the samples that hold a document. Both in closed form.

    sample number --plan--> source, epoch, sequence --packing--> tokens of the stream --*.doc--> documents
    document --*.doc--> tokens of the stream --packing--> sequences --plan, backwards--> sample numbers

Nothing is replayed: the cost depends on the size of the batch, or on the number of samples with the document, not on
the size of the data. Only the search for a document by its id reads the column of ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bigtrain.data.batch.batch import digest_rows, format_digest, wrap_int64
from bigtrain.data.batch.packing import Packing
from bigtrain.data.batch.unlabelled import Unlabelled, find_unlabelled
from bigtrain.data.order.plan import Plan
from bigtrain.data.store.store import Dataset, Tokens
from bigtrain.data.store.stored_document import StoredDocument, documents_between


@dataclass(frozen=True)
class DocumentPart:
    """The part of a document that is visible in a sample: its tokens [start, end)."""

    document: StoredDocument
    start: int
    end: int
    labelled: bool
    """False if data.skip removed its labels: it is in the batch, but not trained on."""

    @property
    def token_ids(self) -> Tokens:
        """[end - start], a view of the shard."""
        return self.document.read(self.start, self.end)

    @property
    def runs(self) -> list[tuple[str | None, list[int]]] | None:
        """Tokens that follow each other with the same label: its name, if there is one, and their ids. None where the
        dataset has no labels."""
        labels, scheme = self.document.labels(self.start, self.end), self.document.dataset.summary.label_scheme
        if labels is None or scheme is None:
            return None
        bounds = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
        ids = self.token_ids.tolist()
        return [(scheme.name(int(labels[first])), ids[first:end]) for first, end in pairwise(bounds) if first < end]


@dataclass(frozen=True)
class SampleContents:
    """The contents of one sample of a global batch."""

    position: int
    """Its position among the samples that were asked for, from 0: of a whole global batch, the position there."""
    sample: int
    """Its global sample number."""
    dataset: Dataset
    epoch: int
    sequence: int
    parts: list[DocumentPart]
    padding: int
    """Padding tokens after the last document."""

    @property
    def token_ids(self) -> npt.NDArray[np.int32]:
        """[T], the row as the model sees it."""
        padding = np.full(self.padding, self.dataset.end_of_text, np.int32)
        return np.concatenate([*(part.token_ids for part in self.parts), padding]).astype(np.int32, copy=False)


@dataclass(frozen=True)
class Appearance:
    """One sample that a document is in, with its tokens [start, end)."""

    sample: int
    epoch: int
    sequence: int
    start: int
    end: int
    labelled: bool
    """Whether it is trained on; see `DocumentPart`."""


def contents_of(plan: Plan, packings: Sequence[Packing], samples: Sequence[int]) -> list[SampleContents]:
    """The documents in samples with these numbers.

    Args:
        plan: the order of the samples.
        packings: the training datasets that the plan was made from, in its order.
        samples: a global batch, or some samples of it.
    """
    unlabelled = find_unlabelled(plan, packings)
    addresses = plan.locate_many(np.array(samples, np.int64))
    contents = []
    for position, (source, epoch, sequence) in enumerate(zip(*(field.tolist() for field in addresses), strict=True)):
        dataset = packings[source].dataset
        own = [skip for skip in unlabelled if skip.source == source]
        spans = _stream_spans(packings[source], sequence)
        parts = [
            DocumentPart(
                document,
                max(start - first, 0),
                min(end, document.end) - first,
                not any(skip.holds(samples[position], first) for skip in own),
            )
            for start, end in spans
            for document in documents_between(dataset, start, end)
            for first in [document.start]
        ]
        padding = plan.length_of(source) - sum(end - start for start, end in spans)
        contents.append(SampleContents(position, samples[position], dataset, epoch, sequence, parts, padding))
    return contents


def digest_of(contents: Sequence[SampleContents]) -> str:
    """The batch digest (16 hexadecimal digits) of a whole global batch, from the tokens of its documents."""
    return format_digest(digest_part(contents, 0))


def digest_part(contents: Sequence[SampleContents], first: int) -> int:
    """What samples that follow each other, of which the first is at position `first`, add to the digest of their
    batch: an int64, as `RankBatch.digest`."""
    return wrap_int64(digest_rows(np.stack([sample.token_ids for sample in contents]), first))


def appearances_of(
    plan: Plan, packings: Sequence[Packing], document: StoredDocument, *, before: int
) -> list[Appearance]:
    """The appearances of a training document in the first `before` samples, in their order."""
    unlabelled = find_unlabelled(plan, packings)
    of_lengths = [
        _appearances(
            plan, packings[index], index, document, [skip for skip in unlabelled if skip.source == index], before
        )
        for index, planned in enumerate(plan.sources)
        if planned.name == document.dataset.name
    ]
    return [appearance for found in of_lengths for appearance in found]


def _appearances(
    plan: Plan, packing: Packing, source: int, document: StoredDocument, unlabelled: Sequence[Unlabelled], before: int
) -> list[Appearance]:
    """The appearances in the sequences of one length."""
    first, end = document.start, document.end
    occurrences = plan.samples_of(source, packing.sequences_with(first, end), before=before)
    return [
        Appearance(
            sample,
            epoch,
            sequence,
            max(start, first) - first,
            min(stop, end) - first,
            not any(skip.holds(sample, first) for skip in unlabelled),
        )
        for sample, epoch, sequence in zip(*(field.tolist() for field in occurrences), strict=True)
        for start, stop in _stream_spans(packing, sequence)
        if start < end and first < stop
    ]


def _stream_spans(packing: Packing, sequence: int) -> list[tuple[int, int]]:
    """The ranges [start, end) of the stream that make up a sequence, in order."""
    spans = packing.spans(np.array([sequence]))
    starts = [packing.dataset.starts[s] + t for s, t in zip(spans.shard.tolist(), spans.start.tolist(), strict=True)]
    return [(start, start + length) for start, length in zip(starts, spans.length.tolist(), strict=True)]

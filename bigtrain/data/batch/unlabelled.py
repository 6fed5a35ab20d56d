"""Documents that are no longer trained on: they stay in the batch and lose their labels.

So no sample moves, no other document is affected (attention never crosses documents), and the loss is a mean over fewer
tokens. The plan has the items of data.skip; the documents are looked up when the data are opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from bigtrain.base import BigtrainError
from bigtrain.data.batch.packing import Packing
from bigtrain.data.order.plan import DocumentSkip, Plan, SampleAddresses
from bigtrain.data.store.store import Dataset
from bigtrain.data.store.stored_document import StoredDocument, find_document
from bigtrain.objective import TokenRows

NEVER_TRAINED_ON = "documents that are held out, or were removed by the build, are never trained on"

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Unlabelled:
    """The documents of one `DocumentSkip`, as ranges of tokens of their dataset's stream."""

    source: int
    packing: Packing
    from_sample: int
    starts: I64
    """[n], in order. The ranges do not overlap."""
    ends: I64

    def holds(self, sample: int, start: int) -> bool:
        """Whether the document that starts at token `start` has no labels in a sample."""
        index = int(self.starts.searchsorted(start))
        return sample >= self.from_sample and index < len(self.starts) and int(self.starts[index]) == start

    def apply(self, rows: TokenRows, samples: I64, addresses: SampleAddresses) -> None:
        """Withhold these documents from R rows, which are these samples (i64 [R])."""
        own = np.flatnonzero((addresses.source == self.source) & (samples >= self.from_sample))
        if not len(own):
            return
        spans = self.packing.spans(addresses.sequence[own])
        base = np.array(self.packing.dataset.starts)[spans.shard] + spans.start
        first = self.ends.searchsorted(base, "right")
        last = self.starts.searchsorted(base + spans.length, "left")
        for span in np.flatnonzero(first < last).tolist():
            row, offset, end = own[spans.row[span]], spans.offset[span], spans.offset[span] + spans.length[span]
            for document in range(first[span], last[span]):
                begin = max(offset, self.starts[document] - base[span] + offset)
                stop = min(end, self.ends[document] - base[span] + offset)
                rows.withhold(int(row), int(begin), int(stop))


def find_unlabelled(plan: Plan, packings: Sequence[Packing]) -> list[Unlabelled]:
    """The documents of every `DocumentSkip` of a plan, at each length of sequences.

    Raises:
        BigtrainError: an item matches no document.
    """
    found = []
    for skip in plan.unlabelled:
        own = [index for index, source in enumerate(plan.sources) if source.name == skip.source]
        starts, ends = _ranges(skip, packings[own[0]])
        found += [Unlabelled(index, packings[index], skip.from_sample, starts, ends) for index in own]
    return found


def _ranges(skip: DocumentSkip, packing: Packing) -> tuple[I64, I64]:
    """The tokens of the documents in the stream of their dataset: starts and ends, in order."""
    ranges = {(document.start, document.end) for name in skip.ids for document in [_with_id(packing.dataset, name)]}
    if skip.files is not None:
        ranges |= set(_documents_of_files(packing.dataset, skip.files))
    if not ranges:
        raise BigtrainError(
            "data.skip: nothing to skip",
            found=f"no training document of source {skip.source!r} from a file like {skip.files!r}",
            wanted="a pattern that matches the names of files that `bigtrain data where` prints",
            fix=f"correct the pattern, or remove the item: {NEVER_TRAINED_ON}",
        )
    starts, ends = np.array(sorted(ranges), np.int64).T
    return starts, ends


def _with_id(dataset: Dataset, document: str) -> StoredDocument:
    try:
        return find_document([dataset], document)
    except BigtrainError as error:
        raise BigtrainError(
            f"data.skip: source {dataset.name!r} has no training document {document}",
            found=error.found,
            wanted="an id of one of its training documents, as `bigtrain data where` prints it",
            fix=f"correct the id or the source, or remove the id: {NEVER_TRAINED_ON}",
        ) from None


def _documents_of_files(dataset: Dataset, pattern: str) -> list[tuple[int, int]]:
    """The documents, as ranges of tokens, whose file matches. Reads the table of files of every shard."""
    ranges: list[tuple[int, int]] = []
    for base, shard in zip(dataset.starts, dataset.shards, strict=False):
        columns = shard.documents
        matching = [i for i in range(len(columns.name_end)) if fnmatchcase(columns.name_of_file(i), pattern)]
        numbers = np.flatnonzero(np.isin(columns.file, matching)) if matching else np.empty(0, np.int64)
        starts, ends = columns.offset[numbers] + base, columns.offset[numbers + 1] + base
        ranges += zip(starts.tolist(), ends.tolist(), strict=True)
    return ranges

"""The order of the training samples: `g -> (source, epoch, sequence)` in closed form.

Global sample number g first finds its phase, then by exact quotas its source and its number k within that source.
With n sequences in the source, k lies in epoch k // n, and a permutation keyed by seed, source and epoch takes k % n
to a sequence. Nothing is stored and nothing is drawn: the whole state of the data is {consumed_samples, plan_id}.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigtrain.config.data_settings import DataSettings
from bigtrain.config.errors import BigtrainError
from bigtrain.data.hashing import identity
from bigtrain.data.permutation import permutation
from bigtrain.data.quotas import Quotas, integer_weights, weights_in_proportion
from bigtrain.data.store import Dataset

PLAN_FORMAT = 1

I64 = npt.NDArray[np.int64]


class SampleAddress(NamedTuple):
    """Where a sample is: index of its source in `Plan.sources`, epoch of that source, sequence within it."""

    source: int
    epoch: int
    sequence: int


class Occurrences(NamedTuple):
    """When sequences of a source are samples, an array [n] a field, in the order of the samples."""

    sample: I64
    epoch: I64
    sequence: I64


class SampleAddresses(NamedTuple):
    """The addresses of many samples, an array [n] a field."""

    source: I64
    epoch: I64
    sequence: I64


@dataclass(frozen=True)
class PlannedSource:
    """What the order needs to know about a source."""

    name: str
    dataset_id: str
    tokens: int
    sequences: int
    """Training samples in one epoch."""


@dataclass(frozen=True)
class Phase:
    """From this sample on, sources are mixed in proportion to these integer weights."""

    start_sample: int
    weights: tuple[int, ...]


class Plan:
    """The order of all samples of a run, without end."""

    def __init__(
        self,
        sources: Sequence[PlannedSource],
        phases: Sequence[Phase],
        *,
        seed: int,
        sequence_length: int,
        packing: str = "concat",
    ) -> None:
        if not phases or phases[0].start_sample != 0:
            raise ValueError("the first phase must start at sample 0")
        self.sources = tuple(sources)
        self.phases = tuple(phases)
        self.seed = seed
        self.sequence_length = sequence_length
        self.packing = packing
        self._starts = [phase.start_sample for phase in phases]
        self._quotas = [Quotas(phase.weights) for phase in phases]
        self._drawn = self._drawn_before_each_phase()
        self.plan_id = identity(self._content())

    @classmethod
    def from_datasets(cls, datasets: Sequence[Dataset], settings: DataSettings, seed: int) -> Plan:
        """The plan for the training datasets of `settings.sources`, in that order.

        Without weights the sources are mixed in proportion to their sequences, so that the first
        `sum(sequences)` samples are exactly one epoch of everything. Raises BigtrainError for weights that cannot
        be made exact.
        """
        length = settings.sequence_length
        sources = [PlannedSource(d.name, d.dataset_id, d.tokens, d.sequences(length)) for d in datasets]
        for source in sources:
            if not source.sequences:
                raise BigtrainError(f"the training split of source {source.name!r} is empty")
        shares = [share for source in settings.sources if (share := source.exact_weight) is not None]
        weights = integer_weights(shares) if shares else weights_in_proportion([s.sequences for s in sources])
        return cls(sources, [Phase(0, tuple(weights))], seed=seed, sequence_length=length, packing=settings.packing)

    def _drawn_before_each_phase(self) -> list[list[int]]:
        """For each phase, how many samples each source has given before it."""
        drawn = [[0] * len(self.sources)]
        for start, end, quotas in zip(self._starts, self._starts[1:], self._quotas, strict=False):
            drawn.append([sum(pair) for pair in zip(drawn[-1], quotas.counts(end - start), strict=True)])
        return drawn

    def locate(self, sample: int) -> SampleAddress:
        """The address of global sample number `sample`."""
        source, epoch, sequence = self.locate_many(np.array([sample]))
        return SampleAddress(int(source[0]), int(epoch[0]), int(sequence[0]))

    def locate_many(self, samples: I64) -> SampleAddresses:
        """The addresses of global sample numbers (i64 [n], in any order)."""
        addresses = SampleAddresses(*(np.empty(len(samples), np.int64) for _ in range(3)))
        phases = np.searchsorted(self._starts, samples, side="right") - 1
        for phase in np.unique(phases):
            members = np.flatnonzero(phases == phase)
            numbers = (samples[members] - self._starts[phase]).astype(np.uint64)
            sources, within = self._quotas[phase].locate(numbers)
            addresses.source[members] = sources
            for source in np.unique(sources):
                own = sources == source
                drawn = within[own].astype(np.int64) + self._drawn[phase][source]
                self._shuffle(int(source), drawn, members[own], addresses)
        return addresses

    def _shuffle(self, source: int, drawn: I64, members: I64, addresses: SampleAddresses) -> None:
        """Fill in epoch and sequence for the samples at `members`, which are numbers `drawn` of a source."""
        planned = self.sources[source]
        epochs, rest = np.divmod(drawn, planned.sequences)
        addresses.epoch[members] = epochs
        for epoch in np.unique(epochs):
            own = epochs == epoch
            shuffle = permutation(planned.sequences, self.seed, planned.name, int(epoch))
            addresses.sequence[members[own]] = shuffle.many(rest[own].astype(np.uint64)).astype(np.int64)

    def samples_of(self, source: int, sequences: I64, *, before: int) -> Occurrences:
        """Where these sequences (i64 [n]) of a source are among the first `before` samples: undoes `locate_many`."""
        planned, drawn = self.sources[source], self.samples_drawn(before)[source]
        epochs = -(-drawn // planned.sequences)
        places = [
            permutation(planned.sequences, self.seed, planned.name, epoch).inverse(sequences.astype(np.uint64))
            for epoch in range(epochs)
        ]
        epoch, sequence = np.repeat(np.arange(epochs), len(sequences)), np.tile(sequences, epochs)
        number = np.array(places, np.int64).reshape(-1) + epoch * planned.sequences  # how-many-th of the source
        order = np.argsort(number)
        order = order[number[order] < drawn]
        return Occurrences(self._sample_numbers(source, number[order]), epoch[order], sequence[order])

    def _sample_numbers(self, source: int, numbers: I64) -> I64:
        """The global numbers of a source's samples number `numbers` (i64)."""
        drawn = [before[source] for before in self._drawn]
        phases = np.searchsorted(drawn, numbers, side="right") - 1
        samples = np.empty(len(numbers), np.int64)
        for phase in np.unique(phases):
            own = phases == phase
            within = (numbers[own] - drawn[phase]).astype(np.uint64)
            samples[own] = self._quotas[phase].invert(source, within).astype(np.int64) + self._starts[phase]
        return samples

    def samples_drawn(self, samples: int) -> list[int]:
        """How many of the first `samples` samples come from each source."""
        phase = bisect_right(self._starts, samples) - 1
        counts = self._quotas[phase].counts(samples - self._starts[phase])
        return [before + count for before, count in zip(self._drawn[phase], counts, strict=True)]

    def describe(self) -> dict[str, Any]:
        """Everything that fixes the order, and its hash, for the records of a run."""
        return {"plan_id": self.plan_id, **self._content()}

    def _content(self) -> dict[str, Any]:
        return {
            "format": PLAN_FORMAT,
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "packing": self.packing,
            "sources": [asdict(source) for source in self.sources],
            "phases": [asdict(phase) for phase in self.phases],
        }

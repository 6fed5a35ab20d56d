"""The order of the training samples: `g -> (source, epoch, sequence)` in closed form.

    sample g --skips--> draw --mixture--> source, number k --bounds of an epoch--> epoch k // n, k % n
                                                           --shuffle, keyed by seed, source and epoch--> sequence

Where the length of the sequences changes, the plan has each source once for each length, and a phase that draws from
the sources at the next length:

    draws     |  web of 4096  3, code of 4096  1  |  web of 32768  1, code of 32768  1  |

Nothing is stored or drawn at random: the whole state of the data is {consumed_samples, plan_id}. A plan is described by
a small JSON object (`describe`, `Plan.from_json`). Two plans can be compared without computing a sample
(`first_difference`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from bigtrain.base import STRICT, BigtrainError, as_record
from bigtrain.config import BatchSchedule
from bigtrain.data.format.hashing import identity
from bigtrain.data.order.mixture import Mixture, MixturePhase
from bigtrain.data.order.permutation import permutation
from bigtrain.data.order.shuffle import BlockShuffle, Shuffle
from bigtrain.data.order.skips import Skips

PLAN_FORMAT = 2

Number = Annotated[int, Field(ge=0, lt=2**62)]
Positive = Annotated[int, Field(ge=1, lt=2**62)]
I64 = npt.NDArray[np.int64]


class SampleAddress(NamedTuple):
    """The position of a sample: index of its source in `Plan.sources`, epoch of that source, sequence in the epoch."""

    source: int
    epoch: int
    sequence: int


class Occurrences(NamedTuple):
    """The samples that are given sequences of a source: one array [n] per field, in the order of the samples."""

    sample: I64
    epoch: I64
    sequence: I64


class SampleAddresses(NamedTuple):
    """The addresses of many samples: one array [n] per field."""

    source: I64
    epoch: I64
    sequence: I64


@dataclass(frozen=True)
class PlannedSource:
    """The properties of a source that decide the order of its samples."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    dataset_id: str
    tokens: Number
    sequences: Number
    """Training samples in one epoch."""
    pack_id: str | None = None
    """Identity of the pack index, which says what tokens a sequence has. None for concat, which has no index."""
    at_most: Number | None = None
    """Limit on its samples."""
    block: Positive | None = None
    """Sequences in a block, if blocks are shuffled."""
    window: Positive | None = None
    """Blocks that are mixed with each other at a time."""
    sequence_length: Positive | None = None
    """Tokens in a sequence, in a plan of several lengths. Default: those of the plan."""
    full_blocks: Number | None = None
    """Blocks that are full of tokens: as many at every length. Default: those that are full of sequences."""
    taken: Number = 0
    """Sequences of its first epochs that are not drawn: the source gave their tokens before, at another length, or they
    are left out."""

    def as_json(self) -> dict[str, Any]:
        """Its fields. Those of plans of several lengths are there only if they say something."""
        value = asdict(self)
        return {key: value[key] for key in value if key not in _OF_LENGTHS or value[key]}


_OF_LENGTHS = ("sequence_length", "full_blocks", "taken")


@dataclass(frozen=True)
class DocumentSkip:
    """Documents of a source that have no labels from a sample on."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    source: str
    from_sample: Number
    files: str | None = None
    """A pattern for the names of their files."""
    ids: tuple[str, ...] = ()


class Plan:
    """The order of all samples of a run.

    Args:
        sources: the sources that are mixed, once for each length of their sequences.
        phases: their weights, in order of the first draws; the first phase starts at draw 0.
        seed: keys the shuffles.
        sequence_length: tokens in a sample, where the source says nothing else.
        packing: how sequences are made of tokens.
        batches: the number of samples of each step.
        skipped: ranges of draws that are left out.
        unlabelled: documents that have no labels from a sample on.
    """

    def __init__(
        self,
        sources: Sequence[PlannedSource],
        phases: Sequence[MixturePhase],
        *,
        seed: int,
        sequence_length: int,
        batches: BatchSchedule,
        packing: str = "concat",
        skipped: Sequence[tuple[int, int]] = (),
        unlabelled: Sequence[DocumentSkip] = (),
    ) -> None:
        if not phases or phases[0].start != 0:
            raise ValueError("the first phase must start at draw 0")
        self.sources = tuple(sources)
        self.phases = tuple(phases)
        self.seed = seed
        self.sequence_length = sequence_length
        self.packing = packing
        self.batches = batches
        self.skips = Skips(skipped)
        self.unlabelled = tuple(unlabelled)
        self.mixture = Mixture(phases, [source.at_most for source in sources])
        self._taken = np.array([source.taken for source in sources], np.int64)
        self.plan_id = identity(self._content())

    @property
    def samples(self) -> int | None:
        """The number of samples; None if the sources can be repeated without end."""
        return None if self.mixture.end is None else self.skips.sample_of(self.mixture.end)

    def locate(self, sample: int) -> SampleAddress:
        """The address of global sample number `sample`."""
        source, epoch, sequence = self.locate_many(np.array([sample]))
        return SampleAddress(int(source[0]), int(epoch[0]), int(sequence[0]))

    def locate_many(self, samples: I64) -> SampleAddresses:
        """The addresses of global sample numbers (i64 [n], in any order)."""
        sources, numbers = self.mixture.locate(self.skips.draws(samples))
        lengths = np.array([source.sequences for source in self.sources])[sources]
        epochs, within = np.divmod(numbers + self._taken[sources], lengths)
        sequences = np.empty_like(numbers)
        for source in np.unique(sources).tolist():
            for epoch in np.unique(epochs[sources == source]).tolist():
                own = (sources == source) & (epochs == epoch)
                sequences[own] = self._shuffle(source, epoch).many(within[own].astype(np.uint64)).astype(np.int64)
        return SampleAddresses(sources, epochs, sequences)

    def samples_of(self, source: int, sequences: I64, *, before: int) -> Occurrences:
        """The positions of these sequences (i64 [n]) of a source in the first `before` samples: inverts
        `locate_many`."""
        planned, drawn = self.sources[source], self._drawn(before)[source]
        length = planned.sequences
        epochs = range(planned.taken // length, -(-(planned.taken + drawn) // length))
        places = [self._shuffle(source, epoch).inverse(sequences.astype(np.uint64)) for epoch in epochs]
        epoch, sequence = (
            np.repeat(np.arange(epochs.start, epochs.stop), len(sequences)),
            np.tile(sequences, len(epochs)),
        )
        number = np.array(places, np.int64).reshape(-1) + epoch * length - planned.taken  # number within the source
        order = np.argsort(number)
        order = order[(number[order] >= 0) & (number[order] < drawn)]
        draws = self.mixture.draws_of(source, number[order])
        left = ~self.skips.are_left_out(draws)
        return Occurrences(self.skips.samples(draws[left]), epoch[order][left], sequence[order][left])

    def samples_drawn(self, samples: int) -> list[int]:
        """How many of the first `samples` samples come from each source."""
        counts = np.array(self._drawn(samples))
        for start, end in self.skips.ranges:
            if self.skips.sample_of(start) < samples:
                counts -= np.subtract(self.mixture.drawn_before(end), self.mixture.drawn_before(start))
        return counts.tolist()

    def tokens_before(self, sample: int) -> int:
        """Tokens in all samples before this one, padding included."""
        return int(self.batches.held_before(sample) * self.sequence_length)

    def length_of(self, source: int) -> int:
        """Tokens in a sequence of a source."""
        return self.sources[source].sequence_length or self.sequence_length

    def first_difference(self, other: Plan) -> int | None:
        """A sample before which both plans are certainly the same, step by step and token by token.

        It is the first sample that differs, or an earlier one: only the descriptions of the plans are compared. None
        if the plans are the same for ever.
        """
        if self.plan_id == other.plan_id:
            return None
        if any(getattr(self, name) != getattr(other, name) for name in ("seed", "sequence_length", "packing")):
            return 0
        return min(
            (sample for pair in zip(_turns(self), _turns(other), strict=True) for sample in _first_unlike(*pair)),
            default=None,
        )

    def parts_unlike(self, other: Plan) -> list[str]:
        """The names of the parts that differ between two plans: `phases`, `batches`, ..."""
        mine, theirs = self._content(), other._content()
        return [name for name in mine if mine[name] != theirs[name]]

    def describe(self) -> dict[str, Any]:
        """The full description of the plan, as JSON types, and its hash."""
        return {"plan_id": self.plan_id, **self._content()}

    @classmethod
    def from_json(cls, value: object, where: object = "the plan in a checkpoint's manifest.json") -> Plan:
        """The plan with this description.

        Raises:
            BigtrainError: it is no description of a plan, or has another plan id than it says.
        """
        plan = as_record(_Description, value, where)
        (*warmup, last), starts = plan["batches"], [first_step for first_step, _ in plan["batches"]]
        stages = [(end - step, size) for (step, size), end in zip(warmup, starts[1:], strict=True)]
        try:
            described = cls(
                plan["sources"],
                plan["phases"],
                seed=plan["seed"],
                sequence_length=plan["sequence_length"],
                packing=plan["packing"],
                batches=BatchSchedule(stages, last[1]),
                skipped=plan["skipped"],
                unlabelled=plan["unlabelled"],
            )
            found = described.plan_id
        except (ValueError, ArithmeticError, LookupError) as error:  # numbers that no mixture has
            found = f"{type(error).__name__}: {str(error)[:200]}"
        if found != plan["plan_id"]:
            raise BigtrainError(
                f"{where} is not one that this version of bigtrain wrote",
                found=found,
                wanted=f"plan {plan['plan_id']}",
                fix="use the version of bigtrain that wrote it, or another checkpoint",
            )
        return described

    def _drawn(self, samples: int) -> tuple[int, ...]:
        """The draws that each source has given before sample number `samples`, skipped draws included."""
        return self.mixture.drawn_before(self.skips.draw_of(samples - 1) + 1 if samples else 0)

    def _shuffle(self, source: int, epoch: int) -> Shuffle:
        planned = self.sources[source]
        key = (self.seed, planned.name, epoch)
        if planned.block is None or planned.window is None:
            return permutation(planned.sequences, *key)
        return BlockShuffle(planned.sequences, planned.block, planned.window, *key, full_blocks=planned.full_blocks)

    def _content(self) -> dict[str, Any]:
        return {
            "format": PLAN_FORMAT,
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "packing": self.packing,
            "sources": [source.as_json() for source in self.sources],
            "phases": [{"start": phase.start, "weights": list(phase.weights)} for phase in self.phases],
            "batches": [[stage.first_step, stage.global_batch_size] for stage in self.batches.stages],
            "skipped": [list(draws) for draws in self.skips.ranges],
            "unlabelled": [{**asdict(skip), "ids": list(skip.ids)} for skip in self.unlabelled],
        }


class _Description(TypedDict):
    """What `Plan.describe` returns."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    plan_id: str
    format: Literal[2]
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)]
    sequence_length: Positive
    packing: str
    sources: Annotated[list[PlannedSource], Field(min_length=1)]
    phases: list[MixturePhase]
    batches: Annotated[list[tuple[Number, Positive]], Field(min_length=1)]
    skipped: list[tuple[Number, Number]]
    unlabelled: list[DocumentSkip]


def _turns(plan: Plan) -> Iterator[list[tuple[int, object]]]:
    """The parts of a plan, each as a list of (sample, what starts there)."""
    sample_of = plan.skips.sample_of
    yield [(stage.first_sample, stage[:3]) for stage in plan.batches.stages]
    yield [(sample_of(start), (start, end)) for start, end in plan.skips.ranges]
    yield [(skip.from_sample, skip) for skip in plan.unlabelled]
    mixtures: list[tuple[int, object]] = []
    for interval in plan.mixture.intervals:
        members = [(replace(plan.sources[m], at_most=None), interval.weights[m]) for m in interval.members.tolist()]
        mixtures.append((sample_of(interval.start), (interval.start, members)))
    if plan.mixture.end is not None:
        mixtures.append((sample_of(plan.mixture.end), plan.mixture.end))
    yield mixtures


def _first_unlike(one: Sequence[tuple[int, object]], other: Sequence[tuple[int, object]]) -> Iterator[int]:
    """The sample at which two lists of (sample, what starts there) first differ; nothing if they are equal."""
    for pair in zip_longest(one, other):
        if pair[0] != pair[1]:
            yield min(item[0] for item in pair if item is not None)
            return

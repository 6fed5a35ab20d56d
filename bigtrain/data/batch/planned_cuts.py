"""The parts of a plan, from the settings, cut after cut.

A cut is one way to make sequences of the training documents (`DataSettings.cuts`): mostly there is one, and there are
more where sequence_length changes during the run. Each has its own draws, counted from its first:

    cut 0   web, code at  4,096   its skips --> its phases --> its mixture --> what each source has given by its end
    cut 1   web, code at 32,768   each source goes on from there

What a source has given goes over to the next cut in blocks, which have the same tokens at every length: a multiple of
all lengths. An epoch takes the blocks in a permuted order, some at a time: a window, whose sequences are shuffled
(`BlockShuffle`). The next cut starts with the next window. So no token comes twice before the epoch ends, and what is
left of one window of each source does not come in it. Nothing here depends on what comes later in the run, so later
phases and skips move no earlier sample.

With `new_epoch` a cut starts a new epoch of each source, and nothing before it depends on the lengths after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isqrt, lcm
from typing import NamedTuple

from bigtrain.base import BigtrainError
from bigtrain.config import (
    BatchSchedule,
    DataSettings,
    SequenceCut,
    SkipSettings,
    SourceSettings,
    TrainSettings,
    as_typed,
    first_step_of,
    staged_batches,
)
from bigtrain.data.batch.packing import Packing
from bigtrain.data.order.mixture import Mixture, MixturePhase
from bigtrain.data.order.plan import DocumentSkip, PlannedSource
from bigtrain.data.order.quotas import integer_weights, weights_in_proportion
from bigtrain.data.order.skips import Skips

SHUFFLE_BYTES = 32 << 20
"""Bytes of tokens in a block of the shuffle: eight blocks of a shard, so that few of those belong to two."""


class PlanParts(NamedTuple):
    """What a plan is made of."""

    sources: list[PlannedSource]
    phases: list[MixturePhase]
    batches: BatchSchedule
    skipped: list[tuple[int, int]]
    unlabelled: list[DocumentSkip]


class CutStart(NamedTuple):
    """Where a cut starts."""

    cut: SequenceCut
    step: int
    sample: int
    tokens: int
    """Held by all steps before it."""


def plan_parts(data: DataSettings, train: TrainSettings, packings: Sequence[Packing]) -> PlanParts:
    """The parts of the plan of a run.

    Args:
        data: the `data` section.
        train: the `train` section.
        packings: the training splits of `data.sources`, in that order, once for each of `data.cuts`.

    Raises:
        BigtrainError: a source is empty, or weights cannot be made exact.
    """
    batches, count = staged_batches(data, train.batches), len(data.sources)
    starts = _starts(data, train, batches)
    skips, unlabelled = _skips(data.skip, batches, starts)
    parts = PlanParts([], [], batches, [], unlabelled)
    weights: tuple[int, ...] = ()
    given: tuple[int, ...] = ()
    first_draw = 0
    for number, start in enumerate(starts):
        own = [
            _planned(source, packing, data, number)
            for source, packing in zip(data.sources, packings[number * count : (number + 1) * count], strict=True)
        ]
        if number:
            before = parts.sources[-count:]
            taken = map(_taken, before, given, own, [start.cut.new_epoch] * count)
            own = [replace(source, taken=sequences) for source, sequences in zip(own, taken, strict=True)]
        limits = map(_at_most, data.sources, own)
        own = [replace(source, at_most=limit) for source, limit in zip(own, limits, strict=True)]
        weights = weights or _first_weights(data.sources, own)
        phases = _phases(data, train, starts, number, weights, skips[number], batches)
        weights = phases[-1].weights
        none = (0,) * count
        parts.sources.extend(own)
        parts.phases.extend(
            MixturePhase(first_draw + phase.start, number * none + phase.weights + (len(starts) - 1 - number) * none)
            for phase in phases
        )
        parts.skipped.extend((first_draw + first, first_draw + end) for first, end in skips[number].ranges)
        if number + 1 < len(starts):
            draws = skips[number].draw_of(starts[number + 1].sample - start.sample - 1) + 1
            mixture = Mixture(phases, [source.at_most for source in own])
            given = mixture.drawn_before(draws if mixture.end is None else min(draws, mixture.end))
            first_draw += draws
    return parts


def _starts(data: DataSettings, train: TrainSettings, batches: BatchSchedule) -> list[CutStart]:
    starts = []
    for cut in data.cuts:
        step = 1 if cut.phase is None else first_step_of(data.phases[cut.phase], data, train.batches)
        tokens = train.batches.consumed_after(step - 1) * data.sequence_length
        starts.append(CutStart(cut, step, batches.samples_of(step).start, tokens))
    return starts


def _phases(
    data: DataSettings,
    train: TrainSettings,
    starts: Sequence[CutStart],
    number: int,
    weights: tuple[int, ...],
    skips: Skips,
    batches: BatchSchedule,
) -> list[MixturePhase]:
    """The mixtures of a cut over its own draws, which begins with these weights."""
    start, end = starts[number], starts[number + 1].cut.phase if number + 1 < len(starts) else None
    own = data.phases[start.cut.phase or 0 : end]
    if start.cut.phase is not None and own[0].weights:
        weights = _weights(own[0].weights, data.sources)
    phases = [MixturePhase(0, weights)]
    for phase in own[start.cut.phase is not None :]:
        if phase.weights:
            if phase.starts_stage:
                sample = batches.samples_of(first_step_of(phase, data, train.batches)).start - start.sample
            else:
                sample = max(0, -(-(phase.from_tokens - start.tokens) // start.cut.sequence_length))
            phases.append(MixturePhase(skips.draw_of(sample), _weights(phase.weights, data.sources)))
    return phases


def _planned(source: SourceSettings, packing: Packing, data: DataSettings, number: int) -> PlannedSource:
    """A source at the length of cut `number`, from the start of its first epoch on."""
    dataset, length = packing.dataset, data.cuts[number].sequence_length
    if not packing.rows:
        raise BigtrainError(f"the training split of source {dataset.name!r} is empty")
    planned = PlannedSource(
        dataset.name,
        dataset.dataset_id,
        dataset.tokens,
        packing.rows,
        packing.pack_id,
        sequence_length=None if length == data.sequence_length else length,
    )
    shared = _lengths_of_epoch(data.cuts, number)
    multiple = lcm(*shared)
    block = max(1, SHUFFLE_BYTES // dataset.token_bytes // multiple) * multiple
    if len(shared) == 1:
        window = data.shuffle_blocks
        return replace(planned, block=block // length, window=window) if window else planned
    block = block if data.shuffle_blocks else multiple
    full = dataset.tokens // block
    window = data.shuffle_blocks or max(1, isqrt(full))
    return replace(planned, block=block // length, window=window, full_blocks=full)


def _lengths_of_epoch(cuts: Sequence[SequenceCut], number: int) -> list[int]:
    """The lengths of a cut and of those that share its epochs: one of each cut."""
    first = max(i for i in range(number + 1) if i == 0 or cuts[i].new_epoch)
    end = next((i for i in range(number + 1, len(cuts)) if cuts[i].new_epoch), len(cuts))
    return [cut.sequence_length for cut in cuts[first:end]]


def _taken(before: PlannedSource, drawn: int, now: PlannedSource, new_epoch: bool) -> int:
    """The sequences of a source at its next length that count as given.

    Args:
        before: the source at the length before.
        drawn: its sequences that were given at that length.
        now: the source at the next length.
        new_epoch: whether it starts a new epoch.
    """
    epoch, within = divmod(before.taken + drawn, before.sequences)
    if new_epoch:
        return (epoch + (within > 0)) * now.sequences
    assert before.block is not None and before.window is not None and now.block is not None
    blocks = -(-within // (before.block * before.window)) * before.window
    if blocks * before.block >= before.sequences:  # of the last window, too
        return (epoch + 1) * now.sequences
    return epoch * now.sequences + blocks * now.block


def _at_most(source: SourceSettings, planned: PlannedSource) -> int | None:
    """How many sequences a source may still give."""
    if source.max_epochs is None:
        return None
    return max(0, max(1, int(as_typed(source.max_epochs) * planned.sequences)) - planned.taken)


def _first_weights(settings: Sequence[SourceSettings], sources: Sequence[PlannedSource]) -> tuple[int, ...]:
    typed = [source.exact_weight for source in settings]
    if any(typed):
        return tuple(integer_weights([weight or as_typed(0.0) for weight in typed]))
    drawn = [index for index, weight in enumerate(typed) if weight is None]
    weights = [0] * len(sources)
    for index, weight in zip(drawn, weights_in_proportion([sources[i].sequences for i in drawn]), strict=True):
        weights[index] = weight
    return tuple(weights)


def _weights(weights: Mapping[str, float], sources: Sequence[SourceSettings]) -> tuple[int, ...]:
    return tuple(integer_weights([as_typed(weights.get(source.name, 0.0)) for source in sources]))


def _skips(
    settings: Sequence[SkipSettings], batches: BatchSchedule, starts: Sequence[CutStart]
) -> tuple[list[Skips], list[DocumentSkip]]:
    """The draws of each cut, and the documents, that are left out. Steps are counted as the run has them with the items
    before."""
    skips = [Skips() for _ in starts]
    ends = [*(start.step for start in starts[1:]), None]
    draws = []
    for skip in settings:
        if skip.steps is not None:
            for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
                first, last = max(skip.steps[0], start.step), min(skip.steps[1], (end or skip.steps[1] + 1) - 1)
                if first <= last:
                    samples = range(batches.samples_of(first).start, batches.samples_of(last).stop)
                    own = range(samples.start - start.sample, samples.stop - start.sample)
                    skips[number] = skips[number].with_samples(own)
        else:
            number = max(i for i, start in enumerate(starts) if start.step <= skip.from_step)
            sample = batches.samples_of(skip.from_step).start - starts[number].sample
            draws.append((skip, number, skips[number].draw_of(sample)))
    unlabelled = [
        DocumentSkip(
            skip.source or "",
            0 if skip.from_step == 1 else starts[number].sample + skips[number].sample_of(draw),
            skip.files,
            skip.ids,
        )
        for skip, number, draw in draws
    ]
    return skips, unlabelled

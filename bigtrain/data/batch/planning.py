"""Makes the plan of a run from its settings."""

from __future__ import annotations

from collections.abc import Sequence

from bigtrain.base import BigtrainError
from bigtrain.config import (
    BatchSchedule,
    DataSettings,
    PhaseSettings,
    SkipSettings,
    SourceSettings,
    TrainSettings,
    as_typed,
)
from bigtrain.data.batch.packing import Packing
from bigtrain.data.order.mixture import MixturePhase
from bigtrain.data.order.plan import DocumentSkip, Plan, PlannedSource
from bigtrain.data.order.quotas import integer_weights, weights_in_proportion
from bigtrain.data.order.skips import Skips

SHUFFLE_BYTES = 32 << 20
"""Bytes of tokens in a block of the shuffle: eight blocks of a shard, so that few of those belong to two."""


def make_plan(data: DataSettings, train: TrainSettings, packings: Sequence[Packing]) -> Plan:
    """The plan of a run.

    Without weights the sources are mixed in proportion to their sequences. The first `sum(sequences)` samples are then
    exactly one epoch of every source.

    Args:
        data: the `data` section.
        train: the `train` section, for the seed and the batches.
        packings: the training splits of `data.sources`, in that order.

    Raises:
        BigtrainError: a source is empty, weights cannot be made exact, or the cache of remote data is too small.
    """
    if data.remote is not None:
        _require_cache(data, packings)
    sources = [_planned(source, packing, data) for source, packing in zip(data.sources, packings, strict=True)]
    skips, unlabelled = _skips(data.skip, train.batches)
    phases = [MixturePhase(0, _first_weights(data.sources, sources))]
    for phase in data.phases:
        sample = -(-phase.from_tokens // data.sequence_length)
        phases.append(MixturePhase(skips.draw_of(sample), _weights(phase, sources)))
    return Plan(
        sources,
        phases,
        seed=train.seed,
        sequence_length=data.sequence_length,
        packing=data.packing,
        batches=train.batches,
        skipped=skips.ranges,
        unlabelled=unlabelled,
    )


def require_samples(plan: Plan, samples: int) -> None:
    """Raise BigtrainError if the plan has fewer samples than the run needs."""
    if plan.samples is not None and plan.samples < samples:
        raise BigtrainError(
            "the sources are used up before the training ends: every source that is still drawn from has given "
            "its max_epochs",
            found=f"{plan.samples:,} samples, {plan.samples * plan.sequence_length:,} tokens, in all epochs together",
            wanted=f"{samples:,} samples, {samples * plan.sequence_length:,} tokens",
            fix="raise max_epochs of a source or leave it out, give another one a weight in the last phase, or train "
            "on fewer tokens",
        )


def _require_cache(data: DataSettings, packings: Sequence[Packing]) -> None:
    """Refuse an order of samples in which nearly every sample would fetch a block of its own."""
    datasets = [packing.dataset for packing in packings]
    total = sum(dataset.tokens * dataset.token_bytes for dataset in datasets)
    if data.shuffle_blocks is None:
        wanted, remedy = total, "set data.shuffle_blocks, for example to 16, or data.cache_bytes to as much as all data"
    else:
        window = sum((SHUFFLE_BYTES + 2 * d.summary.block_bytes) * data.shuffle_blocks for d in datasets) * 3 // 2
        wanted, remedy = min(total, window), "raise data.cache_bytes, or lower data.shuffle_blocks"
    if data.cache_bytes < wanted:
        raise BigtrainError(
            "the cache of remote data is smaller than the shuffle window, so nearly every sample would fetch a block",
            found=f"data.cache_bytes {data.cache_bytes:,}",
            wanted=f"at least {wanted:,}",
            fix=remedy,
        )


def _planned(source: SourceSettings, packing: Packing, data: DataSettings) -> PlannedSource:
    dataset = packing.dataset
    if not packing.rows:
        raise BigtrainError(f"the training split of source {dataset.name!r} is empty")
    bound = None if source.max_epochs is None else max(1, int(as_typed(source.max_epochs) * packing.rows))
    block = max(1, SHUFFLE_BYTES // dataset.token_bytes // data.sequence_length)
    by_blocks = {"block": block, "window": data.shuffle_blocks} if data.shuffle_blocks else {}
    return PlannedSource(
        dataset.name, dataset.dataset_id, dataset.tokens, packing.rows, packing.pack_id, bound, **by_blocks
    )


def _first_weights(settings: Sequence[SourceSettings], sources: Sequence[PlannedSource]) -> tuple[int, ...]:
    typed = [source.exact_weight for source in settings]
    if any(typed):
        return tuple(integer_weights([weight or as_typed(0.0) for weight in typed]))
    drawn = [index for index, weight in enumerate(typed) if weight is None]
    weights = [0] * len(sources)
    for index, weight in zip(drawn, weights_in_proportion([sources[i].sequences for i in drawn]), strict=True):
        weights[index] = weight
    return tuple(weights)


def _weights(phase: PhaseSettings, sources: Sequence[PlannedSource]) -> tuple[int, ...]:
    return tuple(integer_weights([as_typed(phase.weights.get(source.name, 0.0)) for source in sources]))


def _skips(settings: Sequence[SkipSettings], batches: BatchSchedule) -> tuple[Skips, list[DocumentSkip]]:
    """The draws and documents that are left out. Steps are counted as the run has them with the items before."""
    skips = Skips()
    draws = []
    for skip in settings:
        if skip.steps is not None:
            first, last = skip.steps
            skips = skips.with_samples(range(batches.samples_of(first).start, batches.samples_of(last).stop))
        else:
            draws.append((skip, skips.draw_of(batches.samples_of(skip.from_step).start)))
    unlabelled = [
        DocumentSkip(skip.source or "", 0 if skip.from_step == 1 else skips.sample_of(draw), skip.files, skip.ids)
        for skip, draw in draws
    ]
    return skips, unlabelled

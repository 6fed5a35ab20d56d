"""Makes the plan of a run from its settings."""

from __future__ import annotations

from collections.abc import Sequence

from bigtrain.base import BigtrainError
from bigtrain.config import DataSettings, TrainSettings
from bigtrain.data.batch.packing import Packing
from bigtrain.data.batch.planned_cuts import SHUFFLE_BYTES, plan_parts
from bigtrain.data.order.plan import Plan


def make_plan(data: DataSettings, train: TrainSettings, packings: Sequence[Packing]) -> Plan:
    """The plan of a run.

    Without weights the sources are mixed in proportion to their sequences. The first `sum(sequences)` samples are then
    exactly one epoch of every source.

    Args:
        data: the `data` section.
        train: the `train` section, for the seed and the batches.
        packings: the training splits of `data.sources`, in that order, once for each of `data.cuts`.

    Raises:
        BigtrainError: a source is empty, weights cannot be made exact, or the cache of remote data is too small.
    """
    if data.remote is not None:
        _require_cache(data, packings[: len(data.sources)])
    parts = plan_parts(data, train, packings)
    return Plan(
        parts.sources,
        parts.phases,
        seed=train.seed,
        sequence_length=data.sequence_length,
        packing=data.packing,
        batches=parts.batches,
        skipped=parts.skipped,
        unlabelled=parts.unlabelled,
    )


def require_samples(plan: Plan, samples: int) -> None:
    """Raise BigtrainError if the plan has fewer samples than the run needs."""
    if plan.samples is not None and plan.samples < samples:
        raise BigtrainError(
            "the sources are used up before the training ends: every source that is still drawn from has given "
            "its max_epochs",
            found=f"{plan.samples:,} samples, {plan.tokens_before(plan.samples):,} tokens, in all epochs together",
            wanted=f"{samples:,} samples, {plan.tokens_before(samples):,} tokens",
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

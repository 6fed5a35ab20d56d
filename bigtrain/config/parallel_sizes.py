"""How ranks, samples and the model's own sizes divide. Every check of them, before and in a job, is one of these.

world_size          = data-parallel size x tensor_parallel_size x sequence_parallel_size
global_batch_size   = data-parallel size x micro_batch_size x accumulation steps
data-parallel size  = groups with a second copy of the weights x zero_hpz_partition_size
"""

from __future__ import annotations

from dataclasses import dataclass

from bigtrain.base import BigtrainError
from bigtrain.config.batch_schedule import BatchSchedule
from bigtrain.config.model_settings import ModelSettings


@dataclass(frozen=True)
class WorkDivision:
    """How the samples of each global batch are divided."""

    data_parallel_size: int
    """Parts of a global batch: ranks, or groups of ranks that share their samples."""
    accumulation_steps: tuple[int, ...]
    """Micro-batches that each part has, for every size in `BatchSchedule.sizes`."""


def divide_work(
    batches: BatchSchedule,
    micro_batch_size: int,
    world_size: int,
    *,
    tensor_parallel_size: int = 1,
    sequence_parallel_size: int = 1,
    zero_hpz_partition_size: int = 1,
) -> WorkDivision:
    """How the ranks divide the samples of every step.

    Args:
        batches: the global batch sizes of the run, in samples.
        micro_batch_size: samples in one forward pass on one rank; of samples of another length, as many as hold the
            same tokens.
        world_size: ranks.
        tensor_parallel_size: ranks that share each matrix.
        sequence_parallel_size: ranks that share each sequence.
        zero_hpz_partition_size: ranks that share a second copy of the weights.

    Raises:
        BigtrainError: the ranks do not divide into groups of these sizes, or a global batch does not divide into
            micro-batches on all of them.
    """
    data_parallel_size = divide_ranks(world_size, tensor_parallel_size, sequence_parallel_size)
    rows = [stage.micro_batch_size(micro_batch_size) for stage in batches.stages]
    for key, stage, own in zip(batches.keys, batches.stages, rows, strict=True):
        size, unit = stage.global_batch_size, own * data_parallel_size
        if size % unit:
            below = size // unit * unit
            nearest = f"{below} or {below + unit}" if below else str(unit)
            first = stage.length == 1
            raise BigtrainError(
                f"{key} does not divide into micro-batches on all ranks"
                if first
                else f"{key} makes global batches that do not divide into micro-batches on all ranks",
                found=f"global_batch_size {size}, micro_batch_size {own}, data-parallel size {data_parallel_size}",
                wanted=f"a multiple of {own} x {data_parallel_size} = {unit}",
                fix=f"set {key} to {nearest}, or change micro_batch_size or the number of ranks"
                if first
                else "raise train.global_batch_size, or change train.micro_batch_size or the number of ranks",
            )
    require_whole_partitions(data_parallel_size, zero_hpz_partition_size)
    return WorkDivision(
        data_parallel_size,
        tuple(size // own // data_parallel_size for size, own in zip(batches.sizes, rows, strict=True)),
    )


def divide_ranks(world_size: int, tensor_parallel_size: int, sequence_parallel_size: int) -> int:
    """The data-parallel size: into how many groups, each with samples of its own, the ranks divide.

    Raises:
        BigtrainError: they do not divide.
    """
    group = tensor_parallel_size * sequence_parallel_size
    if world_size % group:
        raise BigtrainError(
            "the ranks do not divide into groups that share their samples",
            found=f"{world_size} ranks",
            wanted=f"a multiple of {group}, for engine.tensor_parallel_size or sequence_parallel_size",
            fix=f"start {-(-world_size // group) * group} ranks, or make that size smaller",
        )
    return world_size // group


def require_whole_partitions(data_parallel_size: int, zero_hpz_partition_size: int) -> None:
    """Raise BigtrainError where the ranks do not divide into groups that share a second copy of the weights."""
    if data_parallel_size % zero_hpz_partition_size:
        raise BigtrainError(
            "the ranks do not divide into groups that hold a second copy of the weights",
            found=f"{data_parallel_size} ranks",
            wanted=f"a multiple of engine.zero_hpz_partition_size {zero_hpz_partition_size}",
            fix="set it to the number of ranks on a node",
        )


def uneven_batch(batches: BatchSchedule, micro_batch_size: int) -> tuple[str, int] | None:
    """The key and the value of the first global batch size that is no multiple of a micro-batch; None without one."""
    stages = zip(batches.keys, batches.stages, strict=True)
    uneven = (
        (key, stage.global_batch_size)
        for key, stage in stages
        if stage.global_batch_size % stage.micro_batch_size(micro_batch_size)
    )
    return next(uneven, None)


def uneven_share(
    model: ModelSettings, sequence_length: int, tensor_parallel_size: int, sequence_parallel_size: int
) -> str | None:
    """What of a model or a sequence does not divide over the ranks that share it, as a sentence; None if all does."""
    heads = {
        "model.num_attention_heads": model.num_attention_heads,
        "model.num_key_value_heads": model.key_value_heads,
    }
    shared = {
        ("tensor_parallel_size", tensor_parallel_size): heads | {"model.intermediate_size": model.intermediate_size},
        ("sequence_parallel_size", sequence_parallel_size): heads | {"data.sequence_length": sequence_length},
    }
    for (key, parts), sizes in shared.items():
        for name, size in sizes.items():
            if size % parts:
                return f"{name} {size} is not a multiple of engine.{key} {parts}, which divides it"
    return None

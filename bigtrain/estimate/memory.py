"""Bytes on a device at the peak of a step, by kind, for the rank that needs most.

    states        weights, gradients, master_weights, moments     parameters of a stage / what divides them
    activations   kept for the backward pass                      blocks of a stage x micro-batches in flight
                  recomputed                                      one block at a time
    ends          logits_and_loss                                 on the last stage
    buffers       collective_buffers                              gathered weights, buckets of gradients
    overhead      fragmentation, context                          what an allocator and CUDA take

A pipeline's first stage keeps most micro-batches, its last one has the logits: every stage that may be the worst is
computed, and the largest is the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from bigtrain.estimate.constants import FITTED, Constants
from bigtrain.estimate.devices import Device
from bigtrain.estimate.layout import Layout
from bigtrain.estimate.workload import STAYS, BlockWork, Kept, Workload


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes of one device by kind, at the peak of a step. The kinds are those that `bigtrain profile` measures."""

    weights: float
    gradients: float
    master_weights: float
    moments: float
    activations_kept: float
    activations_recomputed: float
    logits_and_loss: float
    collective_buffers: float
    optimizer_step: float
    """What the optimizer's step needs beyond the peak of the backward pass."""
    fragmentation: float
    """What the allocator holds beside what is allocated."""
    context: float
    """CUDA, its libraries and NCCL, which the allocator does not see."""
    stage: int = 0
    """The stage of the pipeline that needs this much."""

    @property
    def kinds(self) -> dict[str, float]:
        """Bytes by kind."""
        return {kind: size for kind, size in asdict(self).items() if kind != "stage"}

    @property
    def states(self) -> float:
        """Weights, gradients, master weights and moments."""
        return self.weights + self.gradients + self.master_weights + self.moments

    @property
    def allocated(self) -> float:
        """What PyTorch reports as its peak of allocated memory."""
        return self.reserved - self.fragmentation

    @property
    def reserved(self) -> float:
        """What PyTorch reports as its peak of reserved memory."""
        return self.total - self.context

    @property
    def total(self) -> float:
        """What `nvidia-smi` shows."""
        return sum(self.kinds.values())

    def left(self, device: Device, constants: Constants = FITTED) -> float:
        """Bytes of a device that remain; negative where this does not fit."""
        return device.memory_bytes - constants.reserve_bytes - self.total


BUCKET_BYTES = 50_000_000 * 4.0
"""A bucket of gradients in float32, as bigtrain sets DeepSpeed's `reduce_bucket_size`."""


def forecast_memory(work: Workload, layout: Layout, constants: Constants = FITTED) -> MemoryForecast:
    """Return the memory of the rank that needs most.

    Args:
        work: the model and how it is computed.
        layout: how it is spread over devices.
        constants: of the fit.
    """
    stages = {0, 1, layout.pipeline - 1} & set(range(layout.pipeline))
    return max((_of_stage(work, layout, stage, constants) for stage in sorted(stages)), key=lambda found: found.total)


def _of_stage(work: Workload, layout: Layout, stage: int, constants: Constants) -> MemoryForecast:
    states = work.states
    dense, experts = stage_parameters(work, layout, stage)
    parameters = dense + experts
    resting = _divided(layout, 3, dense, experts)
    updated = _divided(layout, 1, dense, experts)
    weights = states.weights * (resting if layout.zero_stage == 3 else parameters)
    if layout.zero_stage == 3 and layout.divided(3) > 1:
        weights += states.weights * work.held_whole
    master = states.master * updated
    moments = states.moments * updated
    gradients = states.gradients * _divided(layout, 2, dense, experts)
    if layout.zero_stage == 1:
        gradients += states.gradients_of_last * parameters
    if layout.zero_stage == 2:  # a rank holds whole gradients of those parameters of which it updates a part
        gradients = max(gradients, states.gradients * min(parameters, work.largest_parameter / layout.tensor))
    if layout.zero_stage == 3 and layout.zero_hpz > 1:
        weights += states.gathered * parameters / layout.zero_hpz
    if layout.offload_optimizer:
        master = moments = 0.0
    if layout.offload_weights:
        weights = 0.0

    tokens = layout.micro_batch_size * work.sequence_length / layout.context
    kept = sum(_kept_of_block(block, layout, tokens) * number for block, number in stage_blocks(work, layout))
    recomputes = layout.recomputation not in ("none", "scores")
    last = stage == layout.pipeline - 1
    if last:
        kept += _kept(work.kept_after, layout, tokens, "none")
    if stage == 0:
        kept += _kept(work.kept_before, layout, tokens, "none")
        kept += _kept(work.kept_before, layout, tokens, "offloaded") if recomputes else 0.0
    kept *= micro_batches_in_flight(layout, stage)
    whole_block = max(_kept(block.kept, layout, tokens, "none") for block in work.blocks)
    recomputed = whole_block * (recomputes + constants.backward_copies)
    logits = loss = 0.0
    if last:
        logits = _logits(work, layout, tokens)
        loss = _kept(work.kept_by_head, layout, tokens, "none")
    buffers = _buffers(work, layout, parameters)

    backward = kept + loss + max(recomputed, logits)
    step = states.step_copies * (0.0 if layout.offload_optimizer else updated)
    moving = buffers + max(backward, step)
    groups = 1 + sum(size > 1 for size in (layout.tensor, layout.pipeline, layout.context, layout.replicas))
    return MemoryForecast(
        weights=weights,
        gradients=gradients,
        master_weights=master,
        moments=moments,
        activations_kept=kept,
        activations_recomputed=recomputed if recomputed >= logits else 0.0,
        logits_and_loss=loss + (logits if logits > recomputed else 0.0),
        collective_buffers=buffers,
        optimizer_step=max(0.0, step - backward),
        fragmentation=constants.fragmentation * moving,
        context=constants.context_bytes + constants.communicator_bytes * (groups if layout.devices > 1 else 0),
        stage=stage,
    )


def stage_blocks(work: Workload, layout: Layout) -> list[tuple[BlockWork, float]]:
    """The blocks of the fullest stage, with their number: a stage has whole blocks."""
    if layout.pipeline == 1:
        return [(block, float(block.count)) for block in work.blocks]
    share = -(-work.layers // layout.pipeline) / work.layers
    return [(block, block.count * share) for block in work.blocks]


def stage_parameters(work: Workload, layout: Layout, stage: int) -> tuple[float, float]:
    """Parameters that a rank of a stage computes with: those of experts apart, which expert parallelism divides."""
    dense = experts = 0.0
    for block, number in stage_blocks(work, layout):
        own = number * block.own_share
        for product in block.products:
            parts = 1 if product.divided == "no" else layout.tensor
            if product.experts > 1:
                experts += own * product.parameters / parts / layout.expert
            else:
                dense += own * product.parameters / parts
        dense += own * block.other_parameters
    last = layout.pipeline - 1
    if stage == 0:
        dense += work.embedding_parameters / layout.tensor
    if stage == last:
        dense += work.head_parameters / layout.tensor + work.end_parameters
        if work.tied and last > 0 and work.head is not None:
            dense += work.head.parameters / layout.tensor
    return dense, experts


def micro_batches_in_flight(layout: Layout, stage: int) -> float:
    """Micro-batches whose activations a stage keeps, in units of all its blocks (1F1B; Narayanan et al., 2021)."""
    stages, parts = layout.pipeline, layout.virtual_stages
    waiting = float(stages - stage)
    if parts > 1:
        waiting = (2 * (stages - stage - 1) + (parts - 1) * stages + 1) / parts
    return min(waiting, float(layout.accumulation_steps))


def _divided(layout: Layout, stage: int, dense: float, experts: float) -> float:
    """Parameters of a rank after ZeRO divided them; those of experts have fewer copies."""
    parts = layout.divided(stage)
    return dense / parts + experts / max(1.0, parts / layout.expert)


def _per_token(size: float, divided: bool, layout: Layout) -> float:
    return size / (layout.tensor if divided or layout.tensor_shares_tokens else 1)


def _kept(kept: Iterable[Kept], layout: Layout, tokens: float, recomputation: str) -> float:
    """Bytes on a rank of those tensors that a mode of recomputation keeps."""
    stays = STAYS[recomputation]
    return sum(
        _per_token(each.bytes_per_token * tokens, each.divided, layout) + each.fixed_bytes
        for each in kept
        if each.made_by in stays
    )


def _kept_of_block(block: BlockWork, layout: Layout, tokens: float) -> float:
    """Bytes that a block keeps until its backward pass."""
    least = _kept(block.kept, layout, tokens, layout.recomputation)
    if layout.recomputation == "selective":
        always = _kept(block.kept, layout, tokens, "attention")
        return always + layout.kept_products * (least - always)
    return least + (1 - layout.recomputed_blocks) * (_kept(block.kept, layout, tokens, "none") - least)


def _logits(work: Workload, layout: Layout, tokens: float) -> float:
    if work.head is None:
        return 0.0
    at_a_time = min(tokens, work.logits_tokens or tokens)
    parts = layout.tensor if work.logits_divided else 1
    logits = at_a_time * work.head.outputs * work.head.per_token * work.logits_bytes
    return (logits + work.loss_workspace) / parts


def _buffers(work: Workload, layout: Layout, parameters: float) -> float:
    """What communication needs: two gathered blocks with the gradients of one, or two buckets of gradients."""
    if layout.replicas == 1:
        return 0.0
    if layout.zero_stage == 3:
        blocks = work.widest_block.parameters / layout.tensor
        ends = (work.embedding_parameters + work.head_parameters) / layout.tensor
        moved = 2 * work.states.gathered + work.states.reduced
        if layout.gathers_ends_once:
            return blocks * moved + ends * moved
        return max(blocks, ends) * moved
    return min(2 * BUCKET_BYTES, parameters * 4.0)

"""Seconds of a step by part, for the rank that sets the pace.

a block     products at the rate of their shape, attention at its kernel's, passes over memory at its bandwidth;
            never faster than the host launches kernels; then what it has to wait for
a stage     its blocks, forward and backward, with what is recomputed; the last one also the head
a pipeline  accumulation_steps micro-batches, and the bubble of (stages - 1) / virtual_stages more
a step      that, the communication that nothing hides, the optimizer, and what no part explains
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bigtrain.estimate.communication import Communication, Exchanges
from bigtrain.estimate.constants import FITTED, Constants
from bigtrain.estimate.devices import Device
from bigtrain.estimate.layout import Layout
from bigtrain.estimate.memory import stage_blocks, stage_parameters
from bigtrain.estimate.network import Interconnect
from bigtrain.estimate.workload import AttentionWork, BlockWork, Elementwise, Pass, Product, Workload

CAST_BYTES = 6
"""Of a number in 16 bits: read for the scale, read again, and written in 8 bits and transposed."""
ALIGNED = 64
"""Widths that are multiples of this are read in whole cache lines by all kernels."""
TILE = (128, 256)
"""Rows and columns that one multiprocessor computes at a time in a large matrix product."""


@dataclass(frozen=True)
class StepForecast:
    """Seconds of a step by part. They add up to `total`."""

    matrix_products: float
    attention: float
    elementwise: float
    launch: float
    """Waiting for the host to launch kernels."""
    recomputation: float
    pipeline_bubble: float
    optimizer: float
    overhead: float
    """Data, logging, synchronisation, and waiting for the slowest rank."""
    communication: tuple[Communication, ...] = ()
    saving: float = 0.0
    """Standing still for checkpoints, as its share of a step."""

    @property
    def exposed_communication(self) -> float:
        """Seconds for which computation waits for communication."""
        return sum(each.exposed for each in self.communication)

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by part, exposed communication by what it is for."""
        parts = {
            "matrix_products": self.matrix_products,
            "attention": self.attention,
            "elementwise": self.elementwise,
            "launch": self.launch,
            "recomputation": self.recomputation,
            "pipeline_bubble": self.pipeline_bubble,
            "optimizer": self.optimizer,
            "overhead": self.overhead,
            "saving": self.saving,
        }
        for each in self.communication:
            key = f"exposed_{each.what}"
            parts[key] = parts.get(key, 0.0) + each.exposed
        return parts

    @property
    def total(self) -> float:
        """Seconds of a step."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class _Seconds:
    """Of a piece of work on one micro-batch."""

    products: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    launch: float = 0.0

    def __add__(self, other: _Seconds) -> _Seconds:
        return _Seconds(
            self.products + other.products,
            self.attention + other.attention,
            self.elementwise + other.elementwise,
            self.launch + other.launch,
        )

    def __mul__(self, times: float) -> _Seconds:
        return _Seconds(self.products * times, self.attention * times, self.elementwise * times, self.launch * times)

    @property
    def total(self) -> float:
        return self.products + self.attention + self.elementwise + self.launch


@dataclass(frozen=True)
class _Clock:
    """The rates of one device in one layout."""

    work: Workload
    layout: Layout
    device: Device
    constants: Constants

    @property
    def tokens(self) -> float:
        """Tokens of a micro-batch on a rank."""
        return self.layout.micro_batch_size * self.work.sequence_length / self.layout.context

    def block(self, block: BlockWork, *, backward: bool) -> _Seconds:
        """One block on one micro-batch."""
        products = sum(self.product(each, self.work.compute, backward=backward) for each in block.products)
        attention = scores = 0.0
        for each in block.attention:
            compute, memory = self.attention(each, backward=backward)
            attention += compute
            scores += memory
        passes = self.passes(block) * (2 if backward else 1)
        busy = products + attention + scores + passes
        launching = self.kernels * (2 if backward else 1) * self.constants.kernel_launch
        return _Seconds(products, attention + scores, passes, max(0.0, launching - busy))

    @property
    def kernels(self) -> float:
        """Kernels of a block's forward pass."""
        return self.constants.kernels_eager if self.work.elementwise == "eager" else self.constants.kernels_fused

    def product(self, product: Product, precision: str, *, backward: bool) -> float:
        """A matrix with the tokens of a micro-batch: forward one product; backward one for the inputs, one for the
        weights."""
        inputs, outputs = float(product.inputs), float(product.outputs)
        if product.divided == "inputs":
            inputs /= self.layout.tensor
        elif product.divided == "outputs":
            outputs /= self.layout.tensor
        rows = self.tokens * product.per_token / (product.experts if product.experts > 1 else 1)
        local = product.experts / self.layout.expert if product.experts > 1 else 1.0
        rows *= self.layout.expert if product.experts > 1 else 1
        if not backward:
            once_a_step = inputs * outputs / self.layout.accumulation_steps
            casting = self.casting(rows * inputs + once_a_step, precision)
            return local * (self.matmul(rows, inputs, outputs, precision) + casting)
        of_weights = self.matmul(inputs, rows, outputs, precision) if product.learns else 0.0
        casting = self.casting(rows * outputs, precision)
        return local * (self.matmul(rows, outputs, inputs, precision) + of_weights + casting)

    def casting(self, numbers: float, precision: str) -> float:
        """Seconds to bring numbers from 16 bits to 8 or 4, as they are and transposed."""
        return CAST_BYTES * numbers / self.bandwidth if precision in ("fp8", "fp4") else 0.0

    def matmul(self, rows: float, depth: float, columns: float, precision: str) -> float:
        """Seconds of a product of (rows, depth) and (depth, columns): the slower of computing and of reading it."""
        constants = self.constants
        rate = self.device.reachable(precision, constants.matmul_share_of_peak) * constants.matmul_share
        waves = rows * columns / (TILE[0] * TILE[1] * self.device.multiprocessors)
        useful = waves / (waves + constants.wave_loss) * depth / (depth + constants.depth_loss)
        if any(width % ALIGNED for width in (depth, columns)):
            useful *= constants.unaligned_share
        computing = 2 * rows * depth * columns / (rate * useful)
        wide = {"fp32": 4, "fp8": 1, "fp4": 0.5}.get(precision, 2)
        reading = wide * (rows * depth + depth * columns + rows * columns) / self.bandwidth
        return max(computing, reading)

    def attention(self, work: AttentionWork, *, backward: bool) -> tuple[float, float]:
        """Seconds of computing scores and values, and of passing scores through memory."""
        constants, device = self.constants, self.device
        kernel = self.work.attention_kernel
        heads = work.heads / self.layout.tensor
        flops = 4 * self.tokens * work.head_width * heads * (2.5 if backward else 1.0)
        peak = device.peak("bf16" if self.work.compute in ("fp8", "fp4") else self.work.compute)
        if kernel in ("fused_softmax", "unfused"):
            flops *= 2.0 / 2.5 if backward else 1.0
            rate = device.reachable(self.work.compute, constants.matmul_share_of_peak) * constants.matmul_share
            rate *= work.head_width / (work.head_width + constants.depth_loss)
            fused = kernel == "fused_softmax"
            passes = constants.score_passes_fused if fused else constants.score_passes_unfused
            size = 2 * self.tokens * work.length * heads * passes * (2 / 3 if backward else 1 / 3)
            return flops * work.length / rate, size / self.bandwidth
        share = {
            "flash1": constants.flash1_share,
            "flash2": constants.flash2_share,
            "flash3": constants.flash3_share,
        }[kernel]
        if kernel != "flash3" and device.generation in ("hopper", "blackwell"):
            share *= constants.older_instructions
        share *= work.length / (work.length + constants.short_sequence)
        share *= min(1.0, 0.75 + work.head_width / 512)
        return flops * work.visible / (peak * share), 0.0

    def passes(self, block: BlockWork) -> float:
        """Cheap operations of a block's forward pass."""
        constants, how = self.constants, self.work.elementwise
        whole = self.layout.tensor if self.layout.tensor_shares_tokens else 1
        size = sum(
            (each.eager if _is_eager(each, how) else each.fused) / (self.layout.tensor if each.divided else whole)
            for each in block.passes
        )
        times = {"compiled": constants.compiled_passes, "fused": constants.fused_passes}
        return size * self.tokens * times.get(how, constants.eager_passes) / self.bandwidth

    @property
    def bandwidth(self) -> float:
        """Bytes per second of the device's memory."""
        return self.device.memory_gbs * 1e9 * self.constants.memory_share

    def head(self) -> _Seconds:
        """The product with the vocabulary and the loss, forward and backward."""
        head = self.work.head
        if head is None:
            return _Seconds()
        precision = self.work.compute if self.work.compute in ("fp32", "fp16") else "bf16"
        products = self.product(head, precision, backward=False) + self.product(head, precision, backward=True)
        size = self.tokens * head.outputs * head.per_token / self.layout.tensor * self.constants.logit_passes
        return _Seconds(products=products, elementwise=size / self.bandwidth)


def forecast_step(
    work: Workload,
    layout: Layout,
    device: Device,
    connected: Interconnect,
    constants: Constants = FITTED,
) -> StepForecast:
    """Return the seconds of a step.

    Args:
        work: the model and how it is computed.
        layout: how it is spread over devices.
        device: each of them.
        connected: how they are connected.
        constants: of the fit.
    """
    clock = _Clock(work, layout, device, constants)
    steps = layout.accumulation_steps
    forward, backward, again = _Seconds(), _Seconds(), _Seconds()
    for block, number in stage_blocks(work, layout):
        forward += clock.block(block, backward=False) * number
        backward += clock.block(block, backward=True) * number
        again += _recomputed(clock, block) * number
    blocks = forward + backward
    head = clock.head()
    per_micro_batch = blocks + head  # of the last stage, which sets the pace

    exchanges = Exchanges(work, layout, connected.shared(constants.contention), constants)
    waiting = [*exchanges.tensor(), *exchanges.context(), *exchanges.experts()]
    inside = sum(each.exposed for each in waiting)

    average = (per_micro_batch.total + again.total + inside) - head.total * (1 - 1 / layout.pipeline)
    bubble = (layout.pipeline - 1) / layout.virtual_stages * average
    computing = steps * (per_micro_batch.total + again.total)

    outside = (
        *exchanges.pipeline(),
        *exchanges.weights(blocks.total + again.total),
        *exchanges.gradients(forward.total, backward.total + again.total),
    )
    communication = [each.repeated(steps) for each in waiting] + [each for each in outside if each.total > 0]
    busy = computing + bubble + sum(each.exposed for each in communication)
    overhead = constants.step_overhead + constants.straggling * math.log2(max(layout.devices, 1)) * busy
    return StepForecast(
        matrix_products=steps * per_micro_batch.products,
        attention=steps * per_micro_batch.attention,
        elementwise=steps * per_micro_batch.elementwise,
        launch=steps * per_micro_batch.launch,
        recomputation=steps * again.total,
        pipeline_bubble=bubble,
        optimizer=_optimizer(work, layout, device, constants),
        overhead=overhead,
        communication=tuple(communication),
    )


def _is_eager(each: Pass, how: Elementwise) -> bool:
    return how == "eager" or (how == "fused_norms" and each.what != "norms")


def _recomputed(clock: _Clock, block: BlockWork) -> _Seconds:
    """What the backward pass of a block computes a second time."""
    layout = clock.layout
    if layout.recomputation == "none":
        return _Seconds()
    if layout.recomputation == "scores":
        computing = [clock.attention(each, backward=False) for each in block.attention]
        return _Seconds(attention=sum(sum(each) for each in computing))
    forward = clock.block(block, backward=False)
    if layout.recomputation == "selective":
        again = 1 - layout.kept_products
        return _Seconds(products=forward.products * again, elementwise=forward.elementwise)
    return forward * layout.recomputed_blocks


def _optimizer(work: Workload, layout: Layout, device: Device, constants: Constants) -> float:
    """Reading gradients and states, writing states and weights; at the bandwidth of memory."""
    dense, experts = stage_parameters(work, layout, 0)
    parts = layout.divided(1)
    parameters = dense / parts + experts / max(1.0, parts / layout.expert)
    states = work.states
    size = parameters * (2 * (states.master or states.weights) + 2 * states.moments + 2 * states.gradients + 2)
    computing = parameters * work.optimizer_flops / device.reachable("bf16", constants.matmul_share_of_peak)
    bandwidth = device.memory_gbs * 1e9 * constants.memory_share
    if layout.offload_optimizer:
        bandwidth = min(bandwidth, constants.host_bandwidth)
    return size / bandwidth + computing

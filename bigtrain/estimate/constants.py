"""The constants of the planner: few, each with a meaning and a unit, fitted to published measurements.

`benchmarks/planner.py --fit` fits them on some sources and reports their error on others. Nothing in `estimate`
depends on a constant that is not here or in a device's datasheet.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """Shares are of a datasheet's or a measured figure; times are in seconds, sizes in bytes."""

    # matrix products
    matmul_share_of_peak: float = 0.80
    """What the best product reaches of the peak, for devices without a measurement."""
    matmul_share: float = 0.92
    """What a product in a training step reaches of the best measured one: clocks fall under sustained load."""
    wave_loss: float = 0.5
    """Waves of tiles that a product loses: its last wave fills half of the multiprocessors on average."""
    depth_loss: float = 128.0
    """Depth (inner width) whose time a product loses at the start and end of each tile."""

    # attention
    flash1_share: float = 0.40
    """FlashAttention 1 on a long sequence, as a share of the peak."""
    flash2_share: float = 0.58
    """FlashAttention 2, written for Ampere's instructions."""
    flash2_hopper_share: float = 0.36
    """The same on Hopper and later, whose peak needs other instructions."""
    flash3_share: float = 0.55
    """FlashAttention 3 and cuDNN, which have them."""
    short_sequence: float = 512.0
    """Tokens of a sequence at which an attention kernel reaches half of its rate."""
    score_passes_fused: float = 8.0
    """Reads and writes of all scores, forward and backward, with a fused softmax."""
    score_passes_unfused: float = 18.0
    """The same with a kernel for scaling, mask, softmax and dropout each."""

    # passes over memory
    memory_share: float = 0.80
    """Bandwidth that elementwise kernels reach, of the datasheet's."""
    eager_passes: float = 2.5
    """How many times more bytes pass where cheap operations are one kernel each."""
    kernel_launch: float = 6e-6
    """From one kernel's launch to the next, on the host."""
    kernels_fused: float = 12.0
    """Kernels of a block's forward pass, with fused cheap operations."""
    kernels_eager: float = 30.0
    """The same with one kernel each."""

    # communication
    link_share: float = 0.79
    """Bus bandwidth of large messages inside a node, of the link's one-way bandwidth."""
    network_share: float = 0.90
    """The same between nodes, of the network cards'."""
    switch_reduction_gain: float = 1.33
    """How much faster an all-reduce is where the switch adds up (NVLink SHARP)."""
    congestion: float = 0.03
    """How much bandwidth falls with each doubling of nodes."""
    collective_launch: float = 15e-6
    """Of a collective of any size."""
    link_latency: float = 2e-6
    """Of a hop inside a node."""
    network_latency: float = 6e-6
    """Of a hop between nodes."""
    overlap: float = 0.85
    """Share of the computation of a block under which communication of its neighbours hides."""
    interference: float = 0.10
    """How much longer computation takes while communication hides under it."""

    host_bandwidth: float = 30e9
    """Bytes per second at which states in the host's memory are updated."""

    # a step
    step_overhead: float = 0.01
    """Seconds of a step that no part explains: data, logging, the norm of gradients, synchronisation."""
    straggling: float = 0.004
    """How much longer a step takes with each doubling of devices, because the slowest one sets the pace."""

    # memory
    backward_copies: float = 1.0
    """Gradients of a block's kept activations that are alive at a time, as a share of these activations."""
    fragmentation: float = 0.06
    """What the allocator holds and cannot use, as a share of what is allocated."""
    context_bytes: float = 0.9 * 2**30
    """CUDA context, libraries and loaded kernels."""
    communicator_bytes: float = 0.15 * 2**30
    """Buffers of NCCL for a group of ranks."""
    reserve_bytes: float = 0.5 * 2**30
    """Of a device's memory that nobody gets (driver, ECC)."""


FITTED = Constants()
"""The constants of the last fit."""

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
    matmul_share: float = 0.954
    """What a product in a training step reaches of the best measured one: clocks fall under sustained load."""
    wave_loss: float = 0.54
    """Waves of tiles that a product loses: its last wave fills half of the multiprocessors on average."""
    depth_loss: float = 128.0
    """Depth (inner width) whose time a product loses at the start and end of each tile."""
    unaligned_share: float = 0.542
    """What is left of the rate where a width is no multiple of 64."""

    # attention
    flash1_share: float = 0.353
    """FlashAttention 1 on a long sequence, as a share of the peak."""
    flash2_share: float = 0.632
    """FlashAttention 2, written for Ampere's instructions."""
    older_instructions: float = 0.652
    """What is left of these shares on Hopper and later, whose peak needs other instructions."""
    flash3_share: float = 0.537
    """FlashAttention 3 and cuDNN, which have them."""
    short_sequence: float = 628.0
    """Tokens of a sequence at which an attention kernel reaches half of its rate."""
    score_passes_fused: float = 26.8
    """Reads and writes of all scores, forward and backward, with a fused softmax."""
    score_passes_unfused: float = 44.2
    """The same with a kernel for scaling, mask, softmax and dropout each."""

    # passes over memory
    memory_share: float = 0.793
    """Bandwidth that elementwise kernels reach, of the datasheet's."""
    compiled_passes: float = 1.2
    """Bytes that pass for each counted one (the least that one kernel reads and writes), in compiled blocks."""
    fused_passes: float = 0.904
    """The same with fused norms and activations."""
    eager_passes: float = 1.17
    """Bytes that pass for each that one kernel for each operation reads and writes."""
    logit_passes: float = 15.5
    """Bytes of each logit that the loss reads and writes, forward and backward."""
    kernel_launch: float = 6e-6
    """From one kernel's launch to the next, on the host."""
    kernels_fused: float = 12.0
    """Kernels of a block's forward pass, with fused cheap operations."""
    kernels_eager: float = 30.0
    """The same with one kernel each."""

    # communication
    link_share: float = 0.818
    """Bus bandwidth of large messages inside a node, of the link's one-way bandwidth."""
    network_share: float = 1.0
    """The same between nodes, of the network cards'."""
    switch_reduction_gain: float = 1.34
    """How much faster an all-reduce is where the switch adds up (NVLink SHARP)."""
    congestion: float = 0.0234
    """How much bandwidth falls with each doubling of nodes."""
    collective_launch: float = 1.47e-05
    """Of a collective of any size."""
    link_latency: float = 3.08e-06
    """Of a hop inside a node."""
    network_latency: float = 2.88e-05
    """Of a hop between nodes."""
    link_ramp: float = 2.46e-05
    """Seconds of transfer inside a node after which it runs at half of its bandwidth."""
    network_ramp: float = 0.000135
    """The same between nodes."""
    concurrency: float = 2.19
    """Exponent p by which computation c and communication m that run at the same time add: (c^p + m^p)^(1/p). 1: one
    after the other; infinity: the shorter one hides entirely."""
    tensor_overlap: float = 1.0
    """Share of the backward pass's sums over tensor-parallel ranks that gradients of weights hide (Megatron)."""
    contention: float = 1.52
    """How much slower the network between nodes is in a step than in a sweep of one collective."""
    skew: float = 9.2e-05
    """Seconds that computation waits for each collective beside its own time: ranks arrive at different times."""
    host_bandwidth: float = 30e9
    """Bytes per second at which states in the host's memory are updated."""

    # a step
    step_overhead: float = 0.0238
    """Seconds of a step that no part explains: data, logging, the norm of gradients, synchronisation."""
    straggling: float = 0.00359
    """How much longer a step takes with each doubling of devices, because the slowest one sets the pace."""

    # memory
    backward_copies: float = 0.5
    """Gradients of a block's kept activations that are alive at a time, as a share of these activations."""
    fragmentation: float = 0.18
    """What the allocator holds and cannot use, as a share of what comes and goes in a step: states stay in place."""
    context_bytes: float = 0.9 * 2**30
    """CUDA context, libraries and loaded kernels."""
    communicator_bytes: float = 0.15 * 2**30
    """Buffers of NCCL for a group of ranks."""
    reserve_bytes: float = 0.5 * 2**30
    """Of a device's memory that nobody gets (driver, ECC)."""


FITTED = Constants()
"""The constants of the last fit: `benchmarks/planner.py --fit`, on all sources of shared/published, December 2026."""

"""How the work of a step is laid out over devices: one object from which groups, memory and communication follow.

    devices = data x context x tensor x pipeline       experts are divided among data x context

Neighbouring ranks share a matrix (tensor), groups of these a sequence (context), groups of these a batch (data), and
the stages of the pipeline lie farthest apart. So the groups that communicate most stay inside a node longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Recomputation = Literal["none", "scores", "selective", "full", "offloaded"]
"""engine.activation_checkpointing: what the backward pass recomputes. `scores`: only those of attention, which is what
Megatron calls selective; bigtrain never keeps them."""


@dataclass(frozen=True)
class Group:
    """Ranks that communicate with each other."""

    size: int
    per_node: int
    """How many of them share a node."""

    @property
    def nodes(self) -> int:
        """Nodes over which the group stretches."""
        return -(-self.size // self.per_node)


@dataclass(frozen=True)
class Layout:
    """Sizes of all parallel groups, what ZeRO divides, and what a device computes at a time."""

    data: int = 1
    """Groups of ranks with samples of their own."""
    tensor: int = 1
    """Ranks that share each matrix (engine.tensor_parallel_size)."""
    context: int = 1
    """Ranks that share each sequence (engine.sequence_parallel_size)."""
    context_exchange: Literal["all_to_all", "ring"] = "all_to_all"
    """How ranks that share a sequence exchange it: heads for tokens (Ulysses), or keys and values in a ring."""
    expert: int = 1
    """Ranks that share the experts of a layer."""
    pipeline: int = 1
    """Stages, each with a part of the blocks."""
    virtual_stages: int = 1
    """Parts of the model on each stage of the pipeline: more of them make its bubble smaller (interleaved 1F1B)."""
    tensor_shares_tokens: bool = False
    """Whether ranks that share a matrix also divide the tokens outside of matrices (Megatron's sequence parallelism).
    """
    zero_stage: int = 1
    """What ZeRO divides: 0 nothing, 1 master weights and moments, 2 also gradients, 3 also weights."""
    zero_group: int | None = None
    """Ranks among which ZeRO divides, the other groups hold copies (hybrid sharding). Default: data x context."""
    zero_hpz: int = 1
    """Ranks with a second copy of the weights for the backward pass (engine.zero_hpz_partition_size)."""
    micro_batch_size: int = 1
    """Sequences in one forward pass of a data-parallel group."""
    accumulation_steps: int = 1
    """Micro-batches in a step."""
    recomputation: Recomputation = "none"
    """What the backward pass recomputes."""
    kept_products: float = 1.0
    """selective: the share, in bytes, of the results of matrix products that is kept (activation_memory_budget)."""
    recomputed_blocks: float = 1.0
    """full: the share of the blocks that is recomputed."""
    gathers_ends_once: bool = False
    """Stage 3: whether embedding and head stay gathered from the forward to the backward pass (FSDP's root)."""
    overlaps_tensor: bool = False
    """Whether the backward pass sums over ranks that share a matrix while it computes gradients of weights (Megatron).
    """
    overlaps_gradients: bool = False
    """Whether gradients are summed during the last backward pass. bigtrain does so from stage 2 on."""
    scatters_gradients: bool = False
    """Whether each rank gets only its part of the sum, below stage 3 too (Megatron's distributed optimizer), which
    then also gathers new weights during the next forward pass."""
    offload_optimizer: bool = False
    """Whether master weights and moments lie in the host's memory."""
    offload_weights: bool = False
    """Whether divided weights rest in the host's memory (stage 3)."""

    @property
    def devices(self) -> int:
        """Devices of the job."""
        return self.data * self.context * self.tensor * self.pipeline

    @property
    def global_batch_size(self) -> int:
        """Sequences in a step."""
        return self.data * self.micro_batch_size * self.accumulation_steps

    @property
    def replicas(self) -> int:
        """Ranks that hold the same part of the model: gradients are summed over them."""
        return self.data * self.context

    @property
    def shards(self) -> int:
        """Ranks among which ZeRO divides what its stage says."""
        return min(self.zero_group or self.replicas, self.replicas)

    def divided(self, from_stage: int) -> int:
        """Into how many parts ZeRO divides what it divides from a stage on; 1 below that stage."""
        return self.shards if self.zero_stage >= from_stage else 1

    # groups on nodes of `node_size` devices
    def tensor_group(self, node_size: int) -> Group:
        """The ranks that share each matrix."""
        return _group(self.tensor, 1, node_size)

    def context_group(self, node_size: int) -> Group:
        """The ranks that share each sequence."""
        return _group(self.context, self.tensor, node_size)

    def expert_group(self, node_size: int) -> Group:
        """The ranks that share the experts."""
        return _group(self.expert, self.tensor, node_size)

    def replica_group(self, node_size: int) -> Group:
        """The ranks that sum gradients."""
        return _group(self.replicas, self.tensor, node_size)

    def shard_group(self, node_size: int) -> Group:
        """The ranks among which ZeRO divides."""
        return _group(self.shards, self.tensor, node_size)

    def pipeline_neighbours(self, node_size: int) -> Group:
        """Two neighbouring stages."""
        return _group(min(2, self.pipeline), self.tensor * self.replicas, node_size)

    def uneven(
        self, *, heads: int, key_value_heads: int, layers: int, experts: int, sequence_length: int
    ) -> str | None:
        """What does not divide, as a sentence; None if all does.

        Args:
            heads: query heads.
            key_value_heads: key and value heads.
            layers: blocks.
            experts: in a layer; 0 without.
            sequence_length: tokens of a sequence.
        """
        checks = (
            ("query heads", heads, "tensor", self.tensor),
            ("tokens of a sequence", sequence_length, "context", self.context),
            ("experts", experts, "expert", self.expert),
            ("ranks of data x context", self.replicas, "expert", self.expert),
            ("ranks of data x context", self.replicas, "zero_group", self.shards),
            ("ranks of data x context", self.replicas, "zero_hpz", self.zero_hpz),
        )
        for what, amount, size_name, size in checks:
            if amount % size:
                return f"{amount} {what} are not a multiple of {size_name} {size}"
        if self.context_exchange == "all_to_all" and heads % (self.tensor * self.context):
            return f"{heads} query heads are not a multiple of tensor x context {self.tensor * self.context}"
        if self.pipeline * self.virtual_stages > layers:
            return f"{layers} blocks are fewer than pipeline x virtual_stages {self.pipeline * self.virtual_stages}"
        return None


def _group(size: int, stride: int, node_size: int) -> Group:
    """A group whose members lie `stride` ranks apart."""
    return Group(size, max(1, min(size, node_size // stride)))

"""The section `engine`: how the work is spread over ranks and computed, and which combinations cannot work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from bigtrain.config.section import NonNegativeFloat, PositiveInt, Section, UnitInterval


class EngineSettings(Section):
    """How the work is spread over ranks and computed. Only precision, float8, quantisation and `deepspeed` change the
    mathematics."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """What DeepSpeed ZeRO partitions over the ranks: 0 nothing, 1 optimizer states, 2 also gradients, 3 also
    parameters."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """`bf16`: compute in bfloat16 with float32 master weights and accumulation; `fp16`: the same in float16, with loss
    scaling; `fp32`: all in float32."""
    loss_scale: NonNegativeFloat = 0.0
    """fp16: a fixed loss scale. 0: dynamic, halved at every overflow and doubled after 1,000 steps without one."""
    float8: bool = False
    """Matrix products of the blocks in 8-bit floating point, each tensor with a scale of its own (GPUs of compute
    capability 8.9 or later)."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """Where master weights and moments are kept and updated: on the device, or in the host's memory (stages 1-3)."""
    offload_param: Literal["none", "cpu"] = "none"
    """Where partitioned weights rest between uses: on the device, or in the host's memory (ZeRO stage 3)."""
    tensor_parallel_size: PositiveInt = 1
    """Neighbouring ranks that share each matrix between them (DeepSpeed AutoTP)."""
    sequence_parallel_size: PositiveInt = 1
    """Neighbouring ranks that share each sequence between them (Ulysses): for contexts too long for one device."""
    zero_hpz_partition_size: PositiveInt = 1
    """ZeRO++: ranks, mostly of one node, that hold a second copy of the weights for the backward pass (stage 3)."""
    zero_quantized_weights: bool = False
    """ZeRO++: gather weights in 8 bits (stage 3, CUDA)."""
    zero_quantized_gradients: bool = False
    """ZeRO++: reduce gradients in 4 bits (stage 3, CUDA)."""
    activation_checkpointing: Literal["none", "selective", "full", "offloaded"] = "none"
    """Which activations the backward pass recomputes: none, the cheap ones (`selective`), or all inside a block
    (`full`). `offloaded`: all, and the inputs of the blocks are kept in the host's memory."""
    activation_memory_budget: UnitInterval = 1.0
    """selective: the share, in bytes, of the results of matrix products that is kept. The most expensive are kept
    first, and the rest is recomputed."""
    compile: bool = False
    """Compile each block with torch.compile."""
    attn_implementation: Literal["auto", "varlen", "flex", "cpp", "blockwise", "sdpa", "reference"] = "auto"
    """Attention back-end: `varlen` FlashAttention on CUDA, `flex` FlexAttention on CUDA (also soft caps and distance
    biases), `cpp` FlashAttention in C++ (bf16 on x86 CPUs that have instructions for it; compiled at first use),
    `blockwise` its algorithm in batched matrix products (any CPU), `sdpa` (PyTorch's flash kernel) anywhere,
    `reference` naive and slow. `auto` takes the fastest that works."""
    dry_run: bool = True
    """Run one full micro-batch before the first step and discard its results, so that a model that does not fit into
    memory fails at once. The losses do not depend on it."""
    process_group_timeout_minutes: PositiveFloat = 35.0
    """Minutes after which a collective operation fails, which ends the job."""
    deepspeed: dict[str, Any] = Field({})
    """Further keys for DeepSpeed's configuration. A key that bigtrain sets itself is refused."""

    @model_validator(mode="after")
    def _combination_works(self) -> EngineSettings:
        for broken, why in self._contradictions():
            if broken:
                raise ValueError(why)
        return self

    def _contradictions(self) -> Iterator[tuple[bool, str]]:
        stage, precision = self.zero_stage, self.precision
        yield (
            stage == 0 and precision != "fp32",
            f"zero_stage 0 with precision {precision} has no float32 gradient accumulation in DeepSpeed; use "
            "zero_stage 1 or precision fp32",
        )
        yield (
            stage == 0 and self.offload_optimizer != "none",
            f"offload_optimizer {self.offload_optimizer} moves the state that ZeRO partitions, and zero_stage 0 "
            "partitions nothing; use zero_stage 1, 2 or 3",
        )
        yield (
            stage < 3 and self.offload_param != "none",
            f"offload_param {self.offload_param} moves partitioned weights, which only zero_stage 3 has, found {stage}",
        )
        for key, asked in (
            ("zero_hpz_partition_size", self.zero_hpz_partition_size > 1),
            ("zero_quantized_weights", self.zero_quantized_weights),
            ("zero_quantized_gradients", self.zero_quantized_gradients),
        ):
            yield stage < 3 and asked, f"{key} is a part of ZeRO++, which only zero_stage 3 has, found {stage}"
        yield (
            self.loss_scale > 0 and precision != "fp16",
            f"loss_scale {self.loss_scale} is for precision fp16, found {precision}; remove it",
        )
        yield (
            self.float8 and precision != "bf16",
            f"float8 matrix products give bfloat16 results: they need precision bf16, found {precision}",
        )
        yield (
            self.activation_memory_budget < 1 and self.activation_checkpointing != "selective",
            f"activation_memory_budget {self.activation_memory_budget} is for activation_checkpointing selective, "
            f"found {self.activation_checkpointing}",
        )
        tensor, sequence = self.tensor_parallel_size, self.sequence_parallel_size
        yield (
            tensor > 1 and stage not in (1, 2),
            f"tensor_parallel_size {tensor} works with zero_stage 1 and 2, found {stage}: stage 3 already cuts every "
            "matrix, and stage 0 does not sum the gradient norm over the ranks that share a matrix",
        )
        yield (
            tensor > 1 and sequence > 1,
            f"tensor_parallel_size {tensor} and sequence_parallel_size {sequence} cannot be used together; set one of "
            "them to 1",
        )
        yield (
            tensor > 1 and self.activation_checkpointing == "selective",
            "tensor_parallel_size sums the results of matrix products in place, which activation_checkpointing "
            "selective keeps for the backward pass: gradients would be wrong; use none or full",
        )
        yield tensor > 1 and self.float8, "tensor_parallel_size replaces the layers that float8 would; use one of them"
        yield (
            tensor > 1 and self.offload_optimizer != "none",
            "tensor_parallel_size and offload_optimizer are not tested together; use one of them",
        )

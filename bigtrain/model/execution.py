"""How a model's function is computed: choices that change speed, memory, rounding and the ranks at work, and not what
it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bigtrain.model.cpu.cpu_products import CpuLinear
from bigtrain.model.layers.float8 import Float8Linear
from bigtrain.model.sequence_parallel import SequenceParallel


@dataclass(frozen=True)
class Execution:
    """One choice for all blocks of a model."""

    attn_implementation: str = "auto"
    """A key of `attention_backends.BACKENDS`, or `auto`."""
    activation_checkpointing: str = "none"
    """`none`, `selective`, `full` or `offloaded`: see `activation_checkpointing`."""
    activation_memory_budget: float = 1.0
    """selective: the share, in bytes, of the results of matrix products that is kept."""
    sequence_parallel: SequenceParallel | None = None
    """The ranks that share each sequence; None where a rank has whole ones."""
    float8: bool = False
    """Whether the linear layers of the blocks multiply in 8 bits."""

    @property
    def linear(self) -> type[nn.Linear]:
        """The linear layer of the blocks."""
        return Float8Linear if self.float8 else CpuLinear

"""How a model's function is computed: choices that change speed, memory and the ranks at work, not the mathematics."""

from __future__ import annotations

from dataclasses import dataclass

from bigtrain.model.sequence_parallel import SequenceParallel


@dataclass(frozen=True)
class Execution:
    """One choice for all blocks of a model."""

    attn_implementation: str = "auto"
    """A key of `attention_backends.BACKENDS`, or `auto`."""
    activation_checkpointing: str = "none"
    """A key of `activation_checkpointing.ACTIVATION_CHECKPOINTING`."""
    sequence_parallel: SequenceParallel | None = None
    """The ranks that share each sequence; None where a rank has whole ones."""

"""In what and by which kernels a model is computed: what decides which tensors wait for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bigtrain.config import ModelSettings

AttentionKernel = Literal["varlen", "flex", "cpp", "blockwise", "sdpa"]
"""The back-ends of `bigtrain.model.attention` that training uses; the definition is for tests."""


@dataclass(frozen=True)
class Computation:
    """How a model is computed, and on which sequences."""

    device: Literal["cpu", "cuda"] = "cuda"
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Of weights and activations (engine.precision)."""
    attention: Literal["auto", AttentionKernel] = "auto"
    """engine.attn_implementation."""
    cpu_kernels: bool = True
    """Whether a CPU multiplies bfloat16 itself, so that the kernels in C++ run there."""
    length: int = 1
    """Tokens of a document. Back-ends that hold scores keep one for each pair of these."""
    read_length: int = 1
    """Tokens of a document that an encoder reads."""
    distinct: float = 1.0
    """character_filters: the share of a micro-batch's tokens that are unlike all others: vectors are made once."""
    sequence_parallel: bool = False
    """Whether ranks share each sequence, and exchange heads for tokens around attention."""
    ordered: bool = False
    """Whether the objective gives an order in which tokens see each other, such as a prefix."""

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return 4 if self.precision == "fp32" else 2

    @property
    def product_itemsize(self) -> int:
        """Bytes of what is multiplied: a CPU without instructions for 16 bits widens it."""
        narrow = self.device == "cuda" or (self.precision == "bf16" and self.cpu_kernels)
        return self.itemsize if narrow else 4

    def kernel(self, settings: ModelSettings, *, crosses: bool) -> AttentionKernel:
        """The attention back-end of a model's layers: the first of those that can run, as
        `attention_backends.attention_backend` finds it.

        Args:
            settings: of the model.
            crosses: whether keys are those of an encoder.
        """
        if self.attention != "auto":
            return self.attention
        capped = settings.attn_logit_softcapping is not None
        biased = settings.position_embedding in ("alibi", "t5") and not crosses
        drops = settings.attention_dropout > 0
        relative = settings.architecture == "two_stream"
        ordered = relative or self.ordered
        plain = not (capped or biased or ordered)
        width = settings.head_width
        if self.device == "cuda":
            if plain and not drops and self.precision != "fp32" and width % 8 == 0 and width <= 256:
                return "varlen"
            if not drops:
                return "flex"
        else:
            fits = self.precision == "bf16" and width % 32 == 0 and width <= 256
            if self.cpu_kernels and plain and not crosses and fits:
                return "cpp"
            if not ordered:
                return "blockwise"
        return "sdpa"

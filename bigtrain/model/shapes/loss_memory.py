"""What the loss needs while it is computed: the logits of a part of the rows, and the gradient of the head's weight.

`bigtrain.model.loss` never holds all logits: it takes as many rows at a time as `chunk_rows` says.
"""

from __future__ import annotations

from dataclasses import dataclass

from bigtrain.config import ModelSettings
from bigtrain.model.shapes.computation import Computation

CHUNK_BYTES = {"cpu": 20 << 20, "cuda": 640 << 20}
"""Memory for the logits held at once and their copies: on a CPU what stays in its last-level cache, on a GPU what fills
it. In bf16 two million logits there; here 67 million in PyTorch, 336 million in the kernel, which needs no copies."""


def chunk_rows(device: str, rows: int, classes: int, width: int, bytes_per_logit: int) -> int:
    """How many rows of logits are held at once.

    Args:
        device: `cpu` or `cuda`.
        rows: of all logits.
        classes: columns.
        width: of the states that the head multiplies.
        bytes_per_logit: with those of its copies.
    """
    found = CHUNK_BYTES.get(device, 160 << 20) // (classes * bytes_per_logit)
    if device == "cpu":  # with fewer, adding up the weight's gradient outweighs the products
        found = max(found, width // 2)
    return min(max(found, 1), max(rows, 1))


def most_rows(device: str, settings: ModelSettings, bytes_per_logit: int) -> int | None:
    """How many rows of logits of a model are held at once at most; None with the head of a task, which holds all."""
    if not bytes_per_logit:
        return None
    return chunk_rows(device, 1 << 62, settings.vocab_size, settings.head_input_width, bytes_per_logit)


@dataclass(frozen=True)
class LossMemory:
    """Bytes of the head of tokens beside what it keeps for the backward pass."""

    logits: int
    """Of the rows that are held at once, with their copies."""
    workspace: int
    """The gradient of the weight from one part of the rows, before it is added to the others."""

    bytes_per_logit: int
    """With those of its copies; 0 with the head of a task."""

    @property
    def total(self) -> int:
        """Both together: the peak."""
        return self.logits + self.workspace


def loss_memory(settings: ModelSettings, computation: Computation, rows: int, *, learns: bool = True) -> LossMemory:
    """What the head needs while it computes the loss of so many rows, and frees again.

    Args:
        settings: of the model; with the head of a task there are few logits, and nothing is in parts.
        computation: how it is computed.
        rows: that have logits.
        learns: whether the weight of the head does.
    """
    if settings.task_head != "none":
        return LossMemory(0, 0, 0)
    classes, width, itemsize = settings.vocab_size, settings.head_input_width, computation.product_itemsize
    on_cpu = computation.device == "cpu"
    in_cpp = on_cpu and computation.precision == "bf16" and computation.cpu_kernels
    fused = not on_cpu or (in_cpp and settings.final_logit_softcapping is None)
    bytes_per_logit = itemsize if fused else itemsize + 8  # else logits and probabilities in float32
    held = chunk_rows(computation.device, rows, classes, width, bytes_per_logit)
    workspace = classes * width * itemsize if learns else 0
    if learns and in_cpp:  # matrices are transposed before they are multiplied
        transposed = held * classes if classes <= width else classes * width
        workspace += transposed * itemsize
    if itemsize != computation.itemsize:
        workspace += (classes + rows) * width * itemsize
    return LossMemory(held * classes * bytes_per_logit, workspace, bytes_per_logit)

"""The names of what an adapter adds to a model, and which of its layers a pattern means. Without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from bigtrain.base import BigtrainError

LORA_A, LORA_B, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"
"""Last parts of the names of parameters, as `peft` calls them."""
DOWN, UP = "bottleneck_down", "bottleneck_up"
PREFIX_KEY, PREFIX_VALUE, PROMPT = "prefix_key", "prefix_value", "prompt_embeddings"
PARTS = (LORA_A, LORA_B, MAGNITUDE, DOWN, f"{DOWN}_bias", UP, f"{UP}_bias", PREFIX_KEY, PREFIX_VALUE, PROMPT)
"""Last parts of the names of all parameters that adapters add."""
TASK_HEAD = "task_head."
"""Names of the parameters of the head of a task begin with it."""
BLOCKS = ("layers.", "encoder.layers.")
"""Names of what is inside the blocks that adapters change begin with one of these."""


def is_of_adapter(name: str) -> bool:
    """Whether a parameter of this name is one that an adapter has added."""
    return name.rpartition(".")[2] in PARTS


def matching(key: str, patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that match a pattern, in order.

    Args:
        key: of the section `adapter`, for the message.
        patterns: of whole names; `*` stands for anything.
        names: of modules.

    Raises:
        BigtrainError: a pattern matches no name.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = get_close_matches(pattern.replace("*", ""), names, n=3, cutoff=0.3) or names[:3]
            raise BigtrainError(
                f"a pattern of adapter.{key} matches nothing in this model",
                found=pattern,
                wanted=f"a pattern for whole names such as {', '.join(near)}",
                fix="correct the pattern (* stands for anything), or remove it",
            ).on_all_ranks()
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def require_rank(name: str, r: int, outputs: int, inputs: int) -> None:
    """Make sure that two thin matrices of rank `r` are no larger than the matrix [outputs, inputs] of a layer.

    Raises:
        BigtrainError: they are.
    """
    if r > (most := min(outputs, inputs)):
        raise BigtrainError(
            f"adapter.r is larger than a side of the matrix {name}: the product would be larger than the matrix",
            found=f"r {r}, and a matrix of {outputs} x {inputs}",
            wanted=f"at most {most}",
            fix="lower adapter.r, or leave the layer out of adapter.target_modules",
        ).on_all_ranks()

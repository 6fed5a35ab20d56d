"""The linear layers inside the blocks: what adapters adapt and compression compresses."""

from __future__ import annotations

import re

from torch import nn

_BLOCK = re.compile(r"(encoder\.)?layers\.\d+\.")
"""The start of the names of what is inside a block."""


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside the blocks, by the names of their matrices."""
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and _BLOCK.match(name)
    }


def block_of(name: str) -> str:
    """The block that a parameter is in, such as `layers.3.`; empty outside of blocks."""
    found = _BLOCK.match(name)
    return found[0] if found else ""

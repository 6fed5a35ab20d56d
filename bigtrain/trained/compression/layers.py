"""The linear layers of a model's blocks, changed block after block.

for each block, in the order in which the model computes them:
    what its layers read, from a model whose blocks before it are changed already
    each of its layers is changed
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import torch
from torch import Tensor, nn

from bigtrain.base import BigtrainError
from bigtrain.model import block_of, linear_layers
from bigtrain.trained.compression.calibration import InputReader, LayerInputs

Change = Callable[[str, Tensor, LayerInputs | None], Tensor]
"""From the name of a matrix, its numbers [out, in], and what it is multiplied with where that was measured, to its new
numbers."""


def layers_of(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside the blocks, by the names of their matrices.

    Raises:
        BigtrainError: there are none.
    """
    found = linear_layers(model)
    if not found:
        raise BigtrainError(
            "this model has no linear layers in blocks that could be compressed",
            found=type(model).__name__,
            wanted="a model of blocks with attention",
        )
    return found


@torch.no_grad()
def change_layers(
    layers: dict[str, nn.Linear], change: Change, reader: InputReader | None = None, *, hessians: bool = False
) -> None:
    """Change the matrices of layers in place, block after block.

    Each block takes one pass through the model up to its end, so the passes grow with the square of the depth.

    Args:
        layers: of `layers_of`.
        change: see `Change`.
        reader: measures what layers read. Default: `change` needs no inputs.
        hessians: see `InputReader.inputs`.

    Raises:
        BigtrainError: what `change` raises, or a matrix has become something that is not finite.
    """
    order = list(layers) if reader is None else reader.order(layers)
    blocks = [list(names) for _, names in groupby(order, block_of)]
    for number, names in enumerate(blocks):
        own = {name: layers[name] for name in names}
        measured: dict[str, LayerInputs] = {}
        if reader is not None:
            following = layers[blocks[number + 1][0]] if number + 1 < len(blocks) else None
            measured = reader.inputs(own, following, hessians)
        for name, layer in own.items():
            changed = change(name, layer.weight.detach(), measured.get(name))
            if not changed.isfinite().all():
                raise BigtrainError(
                    f"{name} has become something that is not finite",
                    found="NaN or infinity in its weights, or in what it is multiplied with",
                    fix="use an earlier checkpoint, or a method without calibration",
                )
            layer.weight.copy_(changed)

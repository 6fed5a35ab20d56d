"""Linear layers that compute with pruned or rounded weights while the weights themselves go on learning.

    weight --mask of the step--> --rounded to integers with scales--> what is multiplied
    gradient of what is multiplied --mask--> gradient of the weight

The mask and the integers are a function of the step and the weight alone, and are made again in each pass: a checkpoint
needs nothing but weights and step, and a resumed run repeats itself to the bit. The weight is the one with which the
model computes, in its type, so that every rank has the same whatever the ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bigtrain.config import CompressionSettings
from bigtrain.model.compression.linears import linear_layers
from bigtrain.model.compression.pruning import cubic_sparsity, keep_of_tensor
from bigtrain.model.compression.quantisation import BITS, rounded
from bigtrain.model.cpu.cpu_products import input_gradient, product, weight_gradient


class CompressionAtStep(NamedTuple):
    """What is done to a matrix after a number of steps."""

    sparsity: float
    bits: int | None
    group_size: int

    @classmethod
    def of(cls, settings: CompressionSettings, step: int) -> CompressionAtStep:
        """What the settings say for the weights that `step` steps have made."""
        sparsity = 0.0
        if settings.pruning_end is not None:
            sparsity = cubic_sparsity(step, settings.pruning_start, settings.pruning_end, settings.sparsity)
        return cls(sparsity, BITS.get(settings.weights), settings.group_size)

    def mask(self, weight: Tensor) -> Tensor | None:
        """Which weights stay, bool [out, in]; None: all."""
        return keep_of_tensor(weight.abs(), self.sparsity) if self.sparsity else None

    def compressed(self, weight: Tensor, mask: Tensor | None) -> Tensor:
        """What is multiplied [out, in], in the weight's type. `mask`: of `mask`."""
        weight = weight if mask is None else weight * mask
        return weight if self.bits is None else rounded(weight, self.bits, self.group_size)


class CompressedLinear(nn.Linear):
    """A linear layer in the place of a plain one, whose parameters it has."""

    def __init__(self, plain: nn.Linear, settings: CompressionSettings) -> None:
        """Args:
        plain: the layer; its parameters are taken over as they are.
        settings: what is done to its matrix.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self._settings = settings
        self.at_step(0)

    def at_step(self, step: int) -> None:
        """Compute as after so many steps."""
        self.now = CompressionAtStep.of(self._settings, step)

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        flat: Tensor = _CompressedProduct.apply(  # type: ignore[no-untyped-call]
            input.flatten(0, -2), self.weight, self.now
        )
        output = flat.view(*input.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias


class _CompressedProduct(torch.autograd.Function):
    """x [M, K] and W [N, K] to x c(W)^T [M, N].

    The weight is saved as it is and compressed again in the backward pass: ZeRO 3 has taken it away in between, and
    another copy of all weights would bring back what it saves.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, now: CompressionAtStep) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.now = now
        return product(x, now.compressed(weight, now.mask(weight)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        mask = ctx.now.mask(weight)
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_input = input_gradient(grad, ctx.now.compressed(weight, mask))
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(grad, x)
            of_weight = of_weight if mask is None else of_weight * mask
        return of_input, of_weight, None


def compress_layers(model: nn.Module, settings: CompressionSettings) -> None:
    """Let the linear layers inside the blocks compute with compressed weights, in place, under their names."""
    for name, plain in linear_layers(model).items():
        block, _, last = name.removesuffix(".weight").rpartition(".")
        setattr(model.get_submodule(block), last, CompressedLinear(plain, settings))


class CompressedWeights(Mapping[str, Tensor]):
    """The weights of a plain model that computes what one with compressed layers does; each made when asked for."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        matrices: Collection[str],
        settings: CompressionSettings,
        step: int,
        dtype: torch.dtype,
    ) -> None:
        """Args:
        weights: those that learned.
        matrices: the names of those that are compressed.
        settings: what is done to these.
        step: the steps that have made them.
        dtype: in which the model computes with them.
        """
        self._weights, self._matrices = weights, frozenset(matrices)
        self._now, self._dtype = CompressionAtStep.of(settings, step), dtype

    def __getitem__(self, name: str) -> Tensor:
        weight = self._weights[name]
        if name not in self._matrices:
            return weight
        weight = weight.to(self._dtype)
        return self._now.compressed(weight, self._now.mask(weight))

    def __contains__(self, name: object) -> bool:  # else it would be read to answer
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

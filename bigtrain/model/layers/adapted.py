"""Linear layers with something beside their weight that learns while the weight stays as it is.

    LowRankLinear     W x + b + s B A x                                         (LoRA; Hu et al., 2022)
    DecomposedLinear  m / |W + s B A| (W + s B A) x + b, row by row             (DoRA; Liu et al., 2024)
    BottleneckLinear  y + U gelu(D y + d) + u, with y = W x + b                 (Houlsby et al., 2019)

Each takes over the parameters of a plain layer, under their names, and computes with them as that layer does. All begin
as the plain layer: B and U are zero, and m is the length of the rows of W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.config import AdapterSettings
from bigtrain.model.cpu.cpu_products import linear
from bigtrain.model.layers.dropout import Dropout, DropoutKeys


class AdaptedLinear(nn.Linear):
    """A linear layer in the place of a plain one, whose parameters it has."""

    def __init__(self, plain: nn.Linear) -> None:
        """Args:
        plain: the layer; its parameters are taken over as they are.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self._plain_forward = type(plain).forward

    def plain(self, x: Tensor) -> Tensor:
        """What the plain layer makes of [..., in_features]."""
        return self._plain_forward(self, x)

    def forward(self, input: Tensor, keys: DropoutKeys | None = None) -> Tensor:
        """Map [..., in_features] to [..., out_features]. `keys`: of the tokens, where training drops."""
        raise NotImplementedError


class LowRankLinear(AdaptedLinear):
    """Adds the product of two thin matrices to the weight."""

    def __init__(self, plain: nn.Linear, settings: AdapterSettings, place: str) -> None:
        """Args:
        plain: the layer that is adapted.
        settings: the rank r, and the scaling.
        place: the name of the layer inside its block, as the site of its dropout.
        """
        super().__init__(plain)
        self.scaling = settings.scaling
        self.lora_A = nn.Parameter(torch.empty(settings.r, self.in_features))
        self.lora_B = nn.Parameter(torch.empty(self.out_features, settings.r))
        self.dropout = Dropout(settings.lora_dropout, f"{place} lora")

    def forward(self, input: Tensor, keys: DropoutKeys | None = None) -> Tensor:
        """See `AdaptedLinear.forward`."""
        return self.plain(input) + self.change(self.dropout(input, keys))

    def change(self, x: Tensor) -> Tensor:
        """s B A x for [..., in_features]."""
        return linear(linear(x, self.lora_A), self.lora_B) * self.scaling


class DecomposedLinear(LowRankLinear):
    """Learns direction and length of each row of the weight apart from each other."""

    def __init__(self, plain: nn.Linear, settings: AdapterSettings, place: str) -> None:
        """See `LowRankLinear`."""
        super().__init__(plain, settings, place)
        self.lora_magnitude_vector = nn.Parameter(torch.empty(self.out_features))

    def forward(self, input: Tensor, keys: DropoutKeys | None = None) -> Tensor:
        """See `AdaptedLinear.forward`. As in `peft`, no gradient goes through the length of the rows (section 4.3 of
        the paper), and dropout is applied to all that differs from the plain layer."""
        output = self.plain(input)
        dropped = self.dropout(input, keys)
        if dropped is input:
            base = output if self.bias is None else output - self.bias
        else:
            base = linear(dropped, self.weight)
        with torch.no_grad():
            lengths = row_lengths(changed_weight(self.weight, self.lora_A, self.lora_B, self.scaling))
        ratio = (self.lora_magnitude_vector / lengths).to(output.dtype)
        return output + (ratio - 1) * base + ratio * self.change(dropped)


class BottleneckLinear(AdaptedLinear):
    """Adds a small feed-forward layer's result to what the layer gives."""

    def __init__(self, plain: nn.Linear, settings: AdapterSettings, place: str) -> None:
        """See `LowRankLinear`."""
        super().__init__(plain)
        inner = settings.bottleneck_size
        self.bottleneck_down = nn.Parameter(torch.empty(inner, self.out_features))
        self.bottleneck_down_bias = nn.Parameter(torch.empty(inner))
        self.bottleneck_up = nn.Parameter(torch.empty(self.out_features, inner))
        self.bottleneck_up_bias = nn.Parameter(torch.empty(self.out_features))

    def forward(self, input: Tensor, keys: DropoutKeys | None = None) -> Tensor:
        """See `AdaptedLinear.forward`."""
        output = self.plain(input)
        inner = F.gelu(linear(output, self.bottleneck_down, self.bottleneck_down_bias))
        return output + linear(inner, self.bottleneck_up, self.bottleneck_up_bias)


ADAPTED: dict[str, type[LowRankLinear] | type[BottleneckLinear]] = {
    "lora": LowRankLinear,
    "dora": DecomposedLinear,
    "bottleneck": BottleneckLinear,
}
"""The layer of each method."""


def project(layer: nn.Module, x: Tensor, keys: DropoutKeys | None) -> Tensor:
    """What a linear layer of a block makes of [..., in_features], with the tokens' keys where it has an adapter."""
    output: Tensor = layer(x, keys) if isinstance(layer, AdaptedLinear) else layer(x)
    return output


def changed_weight(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """W + s B A [out, in], from W [out, in], A [r, in] and B [out, r], in W's type."""
    return torch.addmm(weight, b, a, alpha=scaling)


def row_lengths(weight: Tensor) -> Tensor:
    """The lengths [out] of the rows of a matrix [out, in], in float32 at least."""
    return torch.linalg.vector_norm(weight, dim=1, dtype=torch.promote_types(weight.dtype, torch.float32))

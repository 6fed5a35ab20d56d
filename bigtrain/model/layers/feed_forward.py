"""The feed-forward half of a block."""

from __future__ import annotations

from torch import Tensor, nn

from bigtrain.config import ModelSettings
from bigtrain.model.layers.activations import ACTIVATIONS
from bigtrain.model.layers.adapted import project
from bigtrain.model.layers.dropout import Dropout, DropoutKeys


class FeedForward(nn.Module):
    """down(act(up(x))), or gated down(act(gate(x)) * up(x)) (Shazeer, 2020, equation 6)."""

    def __init__(self, settings: ModelSettings, linear: type[nn.Linear]) -> None:
        super().__init__()
        width, inner, bias = settings.hidden_size, settings.intermediate_size, settings.mlp_bias
        self.activation = ACTIVATIONS[settings.hidden_act]
        self.gate_proj = linear(width, inner, bias=bias) if settings.gated_mlp else None
        self.up_proj = linear(width, inner, bias=bias)
        self.down_proj = linear(inner, width, bias=bias)
        self.dropout = Dropout(settings.activation_dropout, "activation")

    def forward(self, x: Tensor, keys: DropoutKeys | None = None) -> Tensor:
        """Map [B, T, width] to [B, T, width], with the keys of these tokens where the model drops."""
        if self.gate_proj is None:
            inner = self.activation(project(self.up_proj, x, keys))
        else:
            inner = self.activation(project(self.gate_proj, x, keys)) * project(self.up_proj, x, keys)
        return project(self.down_proj, self.dropout(inner, keys), keys)

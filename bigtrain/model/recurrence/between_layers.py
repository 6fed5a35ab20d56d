"""Dropout of what enters recurrent layers, and never of what a layer carries from token to token (Zaremba et al., 2014,
section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from bigtrain.config import ModelSettings
from bigtrain.model.layers.dropout import Dropout, DropoutKeys


class BetweenLayers(nn.Module):
    """`embedding_dropout` of the first layer's inputs, `hidden_dropout` of the others'."""

    def __init__(self, settings: ModelSettings, layers: int) -> None:
        super().__init__()
        self.places = nn.ModuleList(
            Dropout(settings.hidden_dropout, f"input of layer {number}")
            if number
            else Dropout(settings.embedding_dropout, "embedding")
            for number in range(layers)
        )

    def forward(self, x: Tensor, number: int, keys: DropoutKeys | None) -> Tensor:
        """What enters layer `number`: [N, C] in step order to [N, C], for the keys of its tokens."""
        dropped: Tensor = self.places[number](x[None], keys)[0]
        return dropped

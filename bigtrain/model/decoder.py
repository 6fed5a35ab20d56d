"""The decoder: a token sees those before it, and predicts the next one.

input_ids -> embed_tokens (+ embed_positions) -> layers -> norm -> lm_head -> summed loss, or logits
                                                       +-> next_token_layers -> lm_head -> more to learn from
"""

from __future__ import annotations

from torch import Tensor, nn

from bigtrain.config import ModelSettings
from bigtrain.model.context import Context
from bigtrain.model.execution import Execution
from bigtrain.model.layers.router import RouterReport
from bigtrain.model.multi_token import NextTokenLayer, losses_ahead
from bigtrain.model.transformer import Transformer


class Decoder(Transformer):
    """A decoder-only language model, with its blocks of multi-token prediction."""

    def __init__(self, settings: ModelSettings, execution: Execution) -> None:
        super().__init__(settings, execution)
        self.next_token_layers = nn.ModuleList(
            NextTokenLayer(settings, number, execution) for number in range(settings.num_nextn_predict_layers)
        )

    def _ahead(
        self, x: Tensor, embedded: Tensor, labels: Tensor, context: Context
    ) -> tuple[list[Tensor], list[RouterReport | None]]:
        return losses_ahead(self.next_token_layers, x, embedded, labels, context, self.head)

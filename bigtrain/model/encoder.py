"""The encoder: a token sees its whole document, and the label of a position is the token that belongs there.

input_ids -> embeddings -> layers -> norm -> the labelled positions alone -> lm_head -> summed loss
                                          +-> lm_head -> logits
"""

from __future__ import annotations

from torch import Tensor

from bigtrain.base import IGNORE_INDEX
from bigtrain.model.transformer import Transformer


class Encoder(Transformer):
    """An encoder-only language model (Devlin et al., 2019). It continues no text."""

    def _summed_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        # A masked language model has labels at few positions, and the head is a large part of a small model.
        labelled = (labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
        return self.lm_head(hidden.flatten(0, -2).index_select(0, labelled), labels.flatten().index_select(0, labelled))

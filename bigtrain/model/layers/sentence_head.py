"""What is predicted of a whole example: in what relation the two segments of a pair stand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.base import IGNORE_INDEX
from bigtrain.config import ModelSettings
from bigtrain.model.cpu.cpu_products import CpuLinear

RELATIONS = 2
"""Labels: the segments follow each other in this order, or they do not."""


class SentenceHead(nn.Module):
    """tanh(dense(x)) and a classifier at the first token of an example (Devlin et al., 2019, as released)."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.dense = CpuLinear(settings.hidden_size, settings.hidden_size)
        self.classifier = CpuLinear(settings.hidden_size, RELATIONS)

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """[B, T, C] to logits [B, T, 2]; with labels [B, T], at the first tokens of examples and else -100, to the sum
        over examples of -log p(label), float32, in nats."""
        if labels is None:
            return self.classifier(torch.tanh(self.dense(hidden)))
        asked = (labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
        logits = self.classifier(torch.tanh(self.dense(hidden.flatten(0, -2).index_select(0, asked))))
        return F.cross_entropy(logits.float(), labels.flatten().index_select(0, asked), reduction="sum")

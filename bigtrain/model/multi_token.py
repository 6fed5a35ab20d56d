"""Multi-token prediction (DeepSeek-AI, 2024, "DeepSeek-V3", section 2.2): further blocks learn to see further ahead.

    stream of module k-1 -> norm --+
                                   +-> projection 2C -> C -> block -> stream of module k -> norm -> head -> token i+k+1
    embedding of token i+k -> norm +

Module 0 is the decoder itself; embedding and head are its own. What the modules learn reaches it through its stream.
They are for training: neither evaluation nor generation calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.base import IGNORE_INDEX
from bigtrain.config import ModelSettings
from bigtrain.model.block import Block
from bigtrain.model.context import Context
from bigtrain.model.execution import Execution
from bigtrain.model.layers.norm import norm_layer
from bigtrain.model.layers.router import RouterReport


class NextTokenLayer(nn.Module):
    """One module: predicts one token further ahead than the one before it."""

    def __init__(self, settings: ModelSettings, number: int, execution: Execution) -> None:
        super().__init__()
        width = settings.hidden_size
        self.hidden_norm = norm_layer(settings)
        self.embedding_norm = norm_layer(settings)
        self.projection = execution.linear(2 * width, width, bias=False)
        self.number = settings.num_hidden_layers + number
        self.block = Block(settings, self.number, execution)
        self.norm = norm_layer(settings)

    def forward(self, x: Tensor, embedded: Tensor, context: Context) -> tuple[Tensor, Tensor, RouterReport | None]:
        """The stream [B, T, C] and the next token's embedding to the next stream, and to what the head takes of it."""
        joined = torch.cat((self.hidden_norm(x), self.embedding_norm(embedded)), dim=-1)
        x, report = self.block(self.projection(joined), context.at_layer(self.number))
        return x, self.norm(x), report


def losses_ahead(
    layers: Iterable[nn.Module],
    x: Tensor,
    embedded: Tensor,
    labels: Tensor,
    context: Context,
    head: Callable[[Tensor, Tensor], Tensor],
) -> tuple[list[Tensor], list[RouterReport | None]]:
    """The summed loss of each module, and what its router reports.

    Args:
        layers: the modules.
        x: [B, T, C], the decoder's stream after its last block.
        embedded: [B, T, C], the embeddings of the input tokens.
        labels: [B, T], the token after each; -100 where there is none.
        context: of the decoder's blocks.
        head: from hidden states and labels to a summed loss.
    """
    losses, reports, shifted = [], [], labels
    for layer in layers:
        embedded = F.pad(embedded[:, 1:], (0, 0, 0, 1))
        shifted = F.pad(shifted[:, 1:], (0, 1), value=IGNORE_INDEX)
        # Where a token has no successor its document ends, and what stands further on belongs to another one.
        labels = torch.where(labels == IGNORE_INDEX, IGNORE_INDEX, shifted)
        x, hidden, report = layer(x, embedded, context._replace(labelled=labels != IGNORE_INDEX))
        losses.append(head(hidden, labels))
        reports.append(report)
    return losses, reports

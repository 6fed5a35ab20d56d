"""XLNet: some tokens are predicted from those before them in a random order (Yang et al., 2019).

input_ids -> embed_tokens ----------------> content stream -+-> layers -> the query stream alone -> lm_head -> loss
labelled places -> one vector for all ----> query stream   -+
input_ids -> embed_tokens -> layers, the content stream alone -> lm_head -> logits

With a task_head: input_ids -> embed_tokens -> layers, the content stream alone -> task_head -> loss, or logits

A label stands at the place of its token. The query stream is computed at labelled places only. Both streams go through
a block as one sequence, one after the other, so that norms and feed-forward layers know nothing of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.config import ModelSettings
from bigtrain.model.attention.attention_rule import OrderRanks
from bigtrain.model.cache import Cache, of_whole_rows
from bigtrain.model.context import Context, Encoded, QueryStream
from bigtrain.model.distillation import labelled_positions
from bigtrain.model.execution import Execution
from bigtrain.model.layers.dropout import DropoutKeys, site_number
from bigtrain.model.layers.positions import distance_vectors
from bigtrain.model.transformer import Transformer

_QUERY_STREAM = site_number("query stream")


class MaskEmbedding(nn.Module):
    """The one vector with which the query stream begins everywhere."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width))

    def forward(self, count: int) -> Tensor:
        """[count, C]"""
        return self.weight.expand(count, -1)


class TwoStream(Transformer):
    """A language model of two streams of attention. It continues no text."""

    def __init__(self, settings: ModelSettings, execution: Execution) -> None:
        super().__init__(settings, execution)
        self.mask_embedding = MaskEmbedding(settings.hidden_size)

    def forward(  # type: ignore[override]  # it has no examples of sentences
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        *,
        each_token: bool = False,
        token_type_ids: Tensor | None = None,
        order_ranks: Tensor | None = None,
        row_keys: Tensor | None = None,
    ) -> Tensor:
        """The summed loss of a packed micro-batch: see `Transformer.forward`.

        A labelled token is predicted from those of its document with lower ranks than its own. `order_ranks` [B, T]
        has to be given; those of tokens that are not labelled are mostly the lowest. A task_head takes no order.
        """
        dropout = self.dropout_keys(row_keys, input_ids)
        if self.task_head is not None:
            hidden = self.hidden(
                input_ids, position_ids, cu_seqlens, max_seqlen, token_type_ids=token_type_ids, dropout=dropout
            )
            loss = self._loss(hidden, labels, cu_seqlens, max_seqlen, dropout, each_token=each_token)
            return loss if each_token else self._learned(loss, hidden, labels)
        assert order_ranks is not None  # the objective makes them
        places = _places_of(labels)
        hidden = self._streams(input_ids, cu_seqlens, max_seqlen, token_type_ids, order_ranks, places, dropout)
        own = labels.flatten()[places]
        if not each_token:
            return self._learned(self._summed_loss(hidden, own), hidden, labels)
        losses = self.lm_head(hidden[None], own[None], each_token=True)[0]
        return losses.new_zeros(labels.numel()).index_put((places,), losses).view_as(labels)

    def label_states(self, labels: Tensor, **inputs: Any) -> Tensor:
        """See `LanguageModel.label_states`. With an order those of the query stream."""
        if inputs.get("order_ranks") is None:
            return super().label_states(labels, **inputs)
        inputs.pop("position_ids")
        hidden = self._streams(**{"token_type_ids": None, **inputs}, places=_places_of(labels))
        return self._at_labels(hidden, labels)

    def _at_labels(self, hidden: Tensor, labels: Tensor) -> Tensor:
        if self.task_head is not None:
            return super()._at_labels(hidden, labels)
        return hidden[: len(labelled_positions(labels))]  # the query stream is at the labelled places alone

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        cache: Cache | None = None,
        token_type_ids: Tensor | None = None,
        encoded: Encoded | None = None,
        dropout: DropoutKeys | None = None,
        order_ranks: Tensor | None = None,
    ) -> Tensor:
        """The last hidden states [B, T, C]: with an order those of the query stream at all places, and without one
        those of the content stream, in which each token sees its whole document."""
        batch, length = input_ids.shape
        if cu_seqlens is None:
            cu_seqlens = of_whole_rows(input_ids)
        places = None if order_ranks is None else torch.arange(input_ids.numel(), device=input_ids.device)
        longest = length if max_seqlen is None else max_seqlen
        hidden = self._streams(input_ids, cu_seqlens, longest, token_type_ids, order_ranks, places, dropout)
        return hidden.view(batch, length, -1)

    def _streams(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        token_type_ids: Tensor | None,
        order_ranks: Tensor | None,
        places: Tensor | None,
        dropout: DropoutKeys | None = None,
    ) -> Tensor:
        """The last hidden states of the query stream at places [P], or of the content stream: [P or B T, C]."""
        x = self.embed_tokens(input_ids).flatten(0, 1)
        if self.task_head is not None:  # a gradient of zero, so that all parameters have one
            x = x + 0 * self.mask_embedding(1).to(x.dtype)
        context = Context(
            cu_seqlens,
            max_seqlen,
            distances=distance_vectors(max_seqlen, x.shape[-1], x.device).to(x.dtype),
            segments=None if token_type_ids is None else token_type_ids.flatten(),
        )
        if order_ranks is not None and places is not None:
            ranks = order_ranks.flatten()
            stream = QueryStream(places, OrderRanks(ranks[places] - 1, ranks))
            context = context._replace(order=OrderRanks(ranks, ranks), query_stream=stream)
            x = torch.cat((x, self.mask_embedding(len(places)).to(x.dtype)))
        if dropout is not None:
            context = context._replace(dropout=_keys_of_streams(dropout, places))
        x, _ = self.through_layers(self.embed_dropout(x[None], context.dropout), context)
        x = self.normalised(x, context)[0]
        return x if places is None else x[-len(places) :]


def _places_of(labels: Tensor) -> Tensor:
    """[P] where the query stream is: at labelled places. Without any at one place, so that every rank uses all
    parameters."""
    places = labelled_positions(labels)
    return places if len(places) else places.new_zeros(1)


def _keys_of_streams(keys: DropoutKeys, places: Tensor | None) -> DropoutKeys:
    """The keys [1, N + P] of both streams, from those of the tokens: the query stream has a site of its own."""
    streams = [keys.whole.flatten()]
    if places is not None:
        streams.append(keys.at(_QUERY_STREAM).whole.flatten()[places])
    joined = torch.cat(streams)[None]
    return DropoutKeys(joined, joined)

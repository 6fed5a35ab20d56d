"""The recurrent language model: layers that carry a state from token to token, without attention.

input_ids -> embed_tokens -> layers, each from the first token of a document to its last -> lm_head -> summed loss

With `character_filters`, vectors of tokens are made of their bytes. States start at zero in each document.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bigtrain.config import ModelSettings
from bigtrain.model.auxiliary import Auxiliary
from bigtrain.model.cache import Cache, of_whole_rows
from bigtrain.model.execution import Execution
from bigtrain.model.language_model import LanguageModel
from bigtrain.model.layers.dropout import Dropout, DropoutKeys
from bigtrain.model.recurrence.between_layers import BetweenLayers
from bigtrain.model.recurrence.characters import token_vectors
from bigtrain.model.recurrence.recurrent_layer import RecurrentLayer
from bigtrain.model.recurrence.sequences import Sequences
from bigtrain.model.recurrence.state_cache import StateCache


class Recurrent(LanguageModel):
    """A language model of recurrent layers (Mikolov et al., 2010; Zaremba et al., 2014). The label of a position is the
    next token."""

    def __init__(self, settings: ModelSettings, execution: Execution) -> None:
        super().__init__()
        self.settings = settings
        self.embed_tokens = token_vectors(settings)
        widths = [settings.embedding_width] + [settings.hidden_size] * (settings.num_hidden_layers - 1)
        self.layers = nn.ModuleList(RecurrentLayer(settings, width, execution) for width in widths)
        self.between_layers = BetweenLayers(settings, len(widths))
        self.final_dropout = Dropout(settings.final_dropout, "final")
        self._add_head()
        self.auxiliary = Auxiliary(settings)
        self.distillation = None
        self._tie()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        *,
        each_token: bool = False,
        row_keys: Tensor | None = None,
    ) -> Tensor:
        """The summed loss of a packed micro-batch: see `Transformer.forward`. Positions are not used."""
        dropout = self.dropout_keys(row_keys, input_ids)
        hidden = self.hidden(input_ids, position_ids, cu_seqlens, max_seqlen, dropout=dropout)
        loss = self._loss(hidden, labels, cu_seqlens, max_seqlen, dropout, each_token=each_token)
        return loss if each_token else self._learned(loss, hidden, labels)

    def logits(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """Logits [B, T, V] for input_ids [B, T]. Without boundaries, each row is one document."""
        return self.head(self.hidden(input_ids, position_ids, cu_seqlens, max_seqlen))

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        cache: Cache | None = None,
        dropout: DropoutKeys | None = None,
    ) -> Tensor:
        """See `LanguageModel.hidden`."""
        assert cache is None or isinstance(cache, StateCache)  # of `new_cache`
        starts = cache.states if cache is not None else []
        sequences = Sequences.of(of_whole_rows(input_ids) if cu_seqlens is None else cu_seqlens)
        x = self.embed_tokens(input_ids).flatten(0, 1)[sequences.order]
        keys, ends = sequences.in_steps(dropout), []
        for number, layer in enumerate(self.layers):
            x = self.between_layers(x, number, keys)
            x, end = layer(x, sequences, starts[number] if starts else None)
            ends.append(end)
        if cache is not None:
            cache.states = ends
        return self.final_dropout(x[sequences.inverse].unflatten(0, input_ids.shape), dropout)

    def new_cache(
        self, lengths: Sequence[int], device: torch.device, read_lengths: Sequence[int] | None = None
    ) -> StateCache:
        """See `LanguageModel.new_cache`."""
        return StateCache(lengths, device)

"""The encoder-decoder: the encoder sees a whole document, and the decoder writes another one while it looks at it.

encoder_input_ids -> embed_tokens -> encoder -> states
input_ids -> embed_tokens -> layers, each with attention to the states -> norm -> lm_head -> summed loss, or logits

Packed: the n-th document of the decoder attends to the n-th of the encoder, and to no other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigtrain.config import ModelSettings
from bigtrain.model.attention.attention_rule import KeyBoundaries
from bigtrain.model.cache import of_whole_rows
from bigtrain.model.context import Encoded
from bigtrain.model.execution import Execution
from bigtrain.model.layers.dropout import DropoutKeys, site_number
from bigtrain.model.transformer import BlockStack, Transformer

_ENCODER = site_number("encoder")


class EncoderDecoder(Transformer):
    """An encoder-decoder language model (Vaswani et al., 2017). Both halves share the embedding of tokens; the parts of
    the decoder have the names that a decoder's have, those of the encoder begin with `encoder.`."""

    def __init__(self, settings: ModelSettings, execution: Execution) -> None:
        super().__init__(settings.decoder_part, execution)
        self.settings = settings
        self.encoder = BlockStack(settings.encoder_part, execution)

    def forward(  # type: ignore[override]  # it needs the encoder's tokens, too
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        *,
        encoder_input_ids: Tensor,
        encoder_position_ids: Tensor,
        encoder_cu_seqlens: Tensor,
        encoder_max_seqlen: int,
        each_token: bool = False,
        row_keys: Tensor | None = None,
    ) -> Tensor:
        """The summed loss of a packed micro-batch.

        Args:
            input_ids: [B, T] int64, what the decoder reads: its target, shifted right by the objective.
            labels: [B, T] int64, the target at the same positions, or what `TaskHead` predicts; -100 where there is
                nothing to predict.
            position_ids: [B, T] int64, restarting at 0 at each document.
            cu_seqlens: [documents + 1] int32, where documents begin among the B T tokens; each row begins one.
            max_seqlen: the longest document, or more.
            encoder_input_ids: [B, S] int64, what the encoder reads.
            encoder_position_ids: [B, S] int64, likewise.
            encoder_cu_seqlens: [documents + 1] int32, among the B S tokens: as many documents, in the same order.
            encoder_max_seqlen: the longest of these, or more.
            each_token: return the losses of the tokens [B, T] instead of their sum, without a gradient.
            row_keys: [B] int64, from the addresses of the rows: what training drops follows from them.

        Returns:
            A float32 scalar: the sum over labelled tokens of -log p(label), in nats.
        """
        encoded = self.encode(
            encoder_input_ids,
            encoder_position_ids,
            encoder_cu_seqlens,
            encoder_max_seqlen,
            self.dropout_keys(row_keys, encoder_input_ids),
        )
        dropout = self.dropout_keys(row_keys, input_ids)
        hidden = self.hidden(input_ids, position_ids, cu_seqlens, max_seqlen, encoded=encoded, dropout=dropout)
        loss = self._loss(hidden, labels, cu_seqlens, max_seqlen, dropout, each_token=each_token)
        return loss if each_token else self._learned(loss, hidden, labels)

    def logits(  # type: ignore[override]  # it needs the encoder's tokens, too
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        *,
        encoder_input_ids: Tensor,
        encoder_position_ids: Tensor | None = None,
        encoder_cu_seqlens: Tensor | None = None,
        encoder_max_seqlen: int | None = None,
    ) -> Tensor:
        """Logits [B, T, V] for input_ids [B, T], after encoder_input_ids [B, S]. Without boundaries, each row is one
        document."""
        encoded = self.encode(encoder_input_ids, encoder_position_ids, encoder_cu_seqlens, encoder_max_seqlen)
        hidden = self.hidden(input_ids, position_ids, cu_seqlens, max_seqlen, encoded=encoded)
        return self.head(hidden)

    def label_states(  # type: ignore[override]  # it needs the encoder's tokens, too
        self,
        labels: Tensor,
        *,
        encoder_input_ids: Tensor,
        encoder_position_ids: Tensor,
        encoder_cu_seqlens: Tensor,
        encoder_max_seqlen: int,
        **inputs: Any,
    ) -> Tensor:
        """See `LanguageModel.label_states`."""
        encoded = self.encode(encoder_input_ids, encoder_position_ids, encoder_cu_seqlens, encoder_max_seqlen)
        return super().label_states(labels, encoded=encoded, **inputs)

    def encode(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        dropout: DropoutKeys | None = None,
    ) -> Encoded:
        """What the encoder makes of input_ids [B, S]. Without boundaries, each row is one document."""
        batch, length = input_ids.shape
        if position_ids is None:
            position_ids = torch.arange(length, device=input_ids.device).expand(batch, length)
        if cu_seqlens is None:
            cu_seqlens = of_whole_rows(input_ids)
        keys = KeyBoundaries(cu_seqlens, length if max_seqlen is None else max_seqlen)
        dropout = dropout and dropout.at(_ENCODER)
        x = self.embed_tokens(input_ids)
        context = self.encoder.context(position_ids, *keys, x.dtype, dropout)
        x, _ = self.encoder.through_layers(self.encoder.stream(x, position_ids, dropout=dropout), context)
        return Encoded(self.encoder.normalised(x, context), keys)

"""The encoder-decoder: the encoder sees a whole document, and the decoder writes another one while it looks at it.

encoder_input_ids -> embed_tokens -> encoder -> states
input_ids -> embed_tokens -> layers, each with attention to the states -> norm -> lm_head -> summed loss, or logits

Packed: the n-th document of the decoder attends to the n-th of the encoder, and to no other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigtrain.config import ModelSettings
from bigtrain.model.attention.attention_rule import KeyBoundaries
from bigtrain.model.context import Context
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
            labels: [B, T] int64, the target at the same positions; -100 where there is nothing to predict.
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
        read = self.dropout_keys(row_keys, encoder_input_ids)
        states = self._encode(
            encoder_input_ids, encoder_position_ids, encoder_cu_seqlens, encoder_max_seqlen, read and read.at(_ENCODER)
        )
        hidden = self._decode(
            input_ids, position_ids, cu_seqlens, max_seqlen, states, encoder_cu_seqlens, encoder_max_seqlen,
            self.dropout_keys(row_keys, input_ids),
        )  # fmt: skip
        if each_token:
            return self.lm_head(hidden, labels, each_token=True)
        return self._summed_loss(hidden, labels)

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
        position_ids, cu_seqlens = _places(input_ids, position_ids, cu_seqlens)
        encoder_position_ids, encoder_cu_seqlens = _places(encoder_input_ids, encoder_position_ids, encoder_cu_seqlens)
        longest = encoder_max_seqlen or encoder_input_ids.shape[1]
        states = self._encode(encoder_input_ids, encoder_position_ids, encoder_cu_seqlens, longest)
        own_longest = max_seqlen or input_ids.shape[1]
        hidden = self._decode(input_ids, position_ids, cu_seqlens, own_longest, states, encoder_cu_seqlens, longest)
        return self.lm_head(hidden)

    def _encode(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        dropout: DropoutKeys | None = None,
    ) -> Tensor:
        """The encoder's normalised states [B, S, C]."""
        x = self.embed_tokens(input_ids)
        context = self.encoder.context(position_ids, cu_seqlens, max_seqlen, x.dtype, dropout)
        x, _ = self.encoder.through_layers(self.encoder.stream(x, position_ids, dropout=dropout), context)
        return self.encoder.normalised(x, context)

    def _decode(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        states: Tensor,
        encoder_cu_seqlens: Tensor,
        encoder_max_seqlen: int,
        dropout: DropoutKeys | None = None,
    ) -> Tensor:
        """The decoder's normalised states [B, T, C]."""
        x = self.embed_tokens(input_ids)
        context: Context = self.context(position_ids, cu_seqlens, max_seqlen, x.dtype, dropout)._replace(
            encoder_states=states, encoder_keys=KeyBoundaries(encoder_cu_seqlens, encoder_max_seqlen)
        )
        x, _ = self.through_layers(self.stream(x, position_ids, dropout=dropout), context)
        return self.normalised(x, context)


def _places(ids: Tensor, position_ids: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions and boundaries of rows [B, T], by default of one document each."""
    batch, length = ids.shape
    if position_ids is None:
        position_ids = torch.arange(length, device=ids.device).expand(batch, length)
    if cu_seqlens is None:
        cu_seqlens = torch.arange(batch + 1, device=ids.device, dtype=torch.int32) * length
    return position_ids, cu_seqlens

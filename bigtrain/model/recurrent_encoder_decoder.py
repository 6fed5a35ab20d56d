"""The recurrent encoder-decoder: the encoder reads a document from both ends, and the decoder writes another one.

encoder_input_ids -> embed_tokens -> encoder, in both directions -> states -----------+
                                                +-> start -> first states             |
input_ids -> embed_tokens -> layers -----------------------> states s --> attention to h --> tanh(R [s; c]) -> lm_head

Attention follows the layers, as in Luong et al. (2015, section 3.1), without feeding its result to the next step: so
all steps attend at once. States of the decoder start from those with which the encoder ended, as in Bahdanau et al.
(2015, appendix A.2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.config import ModelSettings
from bigtrain.model.auxiliary import Auxiliary
from bigtrain.model.cache import of_whole_rows
from bigtrain.model.cpu.cpu_products import CpuLinear
from bigtrain.model.execution import Execution
from bigtrain.model.language_model import LanguageModel
from bigtrain.model.layers.dropout import Dropout, DropoutKeys, site_number
from bigtrain.model.recurrence.between_layers import BetweenLayers
from bigtrain.model.recurrence.characters import token_vectors
from bigtrain.model.recurrence.document_attention import DocumentAttention
from bigtrain.model.recurrence.recurrent_layer import BidirectionalLayer, RecurrentLayer
from bigtrain.model.recurrence.sequences import Sequences

_ENCODER = site_number("encoder")


class RecurrentEncoder(nn.Module):
    """Layers that read documents in both directions."""

    def __init__(self, settings: ModelSettings, widths: Sequence[int], execution: Execution) -> None:
        """With a layer for each of these widths of inputs."""
        super().__init__()
        self.layers = nn.ModuleList(BidirectionalLayer(settings, width, execution) for width in widths)
        self.between_layers = BetweenLayers(settings, len(widths))

    def forward(self, x: Tensor, sequences: Sequences, dropout: DropoutKeys | None = None) -> tuple[Tensor, Tensor]:
        """Map [N, C], in step order, to states [N, H], and give the last layer's last states [D, H]."""
        ends, keys = x, sequences.in_steps(dropout)
        for number, layer in enumerate(self.layers):
            x, ends = layer(self.between_layers(x, number, keys), sequences)
        return x, ends


class RecurrentEncoderDecoder(LanguageModel):
    """A recurrent encoder-decoder with attention. Both halves share the vectors of tokens. The n-th document of the
    decoder attends to the n-th of the encoder, and to no other."""

    def __init__(self, settings: ModelSettings, execution: Execution) -> None:
        super().__init__()
        self.settings = settings
        width, layers = settings.hidden_size, settings.decoder_layers
        self.embed_tokens = token_vectors(settings)

        def widths(number: int) -> list[int]:
            return [settings.embedding_width] + [width] * (number - 1)

        read, written = widths(settings.num_hidden_layers), widths(layers)
        self.encoder = RecurrentEncoder(settings, read, execution)
        self.start = CpuLinear(width, layers * width)
        self.layers = nn.ModuleList(RecurrentLayer(settings, each, execution) for each in written)
        self.attention = DocumentAttention(settings)
        self.readout = CpuLinear(2 * width, width)
        self.between_layers = BetweenLayers(settings, layers)
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
        encoder_input_ids: Tensor,
        encoder_position_ids: Tensor,
        encoder_cu_seqlens: Tensor,
        encoder_max_seqlen: int,
        each_token: bool = False,
        row_keys: Tensor | None = None,
    ) -> Tensor:
        """The summed loss of a packed micro-batch: see `EncoderDecoder.forward`. Positions are not used."""
        hidden = self._read_and_write(input_ids, cu_seqlens, encoder_input_ids, encoder_cu_seqlens, row_keys)
        dropout = self.dropout_keys(row_keys, input_ids)
        loss = self._loss(hidden, labels, cu_seqlens, max_seqlen, dropout, each_token=each_token)
        return loss if each_token else self._learned(loss, hidden, labels)

    def logits(
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
        own = of_whole_rows(input_ids) if cu_seqlens is None else cu_seqlens
        read = of_whole_rows(encoder_input_ids) if encoder_cu_seqlens is None else encoder_cu_seqlens
        return self.head(self._read_and_write(input_ids, own, encoder_input_ids, read))

    def label_states(  # type: ignore[override]  # it needs the encoder's tokens, too
        self,
        labels: Tensor,
        *,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        encoder_input_ids: Tensor,
        encoder_cu_seqlens: Tensor,
        **inputs: Any,
    ) -> Tensor:
        """See `LanguageModel.label_states`. Positions and the longest documents are not used."""
        hidden = self._read_and_write(input_ids, cu_seqlens, encoder_input_ids, encoder_cu_seqlens)
        return self._at_labels(hidden, labels)

    def _read_and_write(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        encoder_input_ids: Tensor,
        encoder_cu_seqlens: Tensor,
        row_keys: Tensor | None = None,
    ) -> Tensor:
        """What the head takes, [B, T, H]."""
        sequences, reads = Sequences.of(encoder_cu_seqlens), self.dropout_keys(row_keys, encoder_input_ids)
        x = self.embed_tokens(encoder_input_ids).flatten(0, 1)[sequences.order]
        x, ends = self.encoder(x, sequences, reads and reads.at(_ENCODER))
        read = x[sequences.inverse]
        starts = self.start(ends.to(read.dtype)).tanh().chunk(len(self.layers), dim=-1)
        sequences, dropout = Sequences.of(cu_seqlens), self.dropout_keys(row_keys, input_ids)
        x, keys = self.embed_tokens(input_ids).flatten(0, 1)[sequences.order], sequences.in_steps(dropout)
        for number, (layer, start) in enumerate(zip(self.layers, starts, strict=True)):
            cells = (torch.zeros_like(start),) if self.settings.cell == "lstm" else ()
            x, _ = layer(self.between_layers(x, number, keys), sequences, (start, *cells))
        states = x[sequences.inverse]
        contexts = self.attention(states, cu_seqlens, read, encoder_cu_seqlens)
        hidden = self.readout(torch.cat((states, contexts), dim=-1)).tanh().unflatten(0, input_ids.shape)
        return self.final_dropout(hidden, dropout)

"""Vectors of tokens from their bytes (Kim et al., 2016): convolutions, their maximum over the token, highway layers.

    bytes [U, W] -> vectors [U, W, d] -> filters of widths 1, 2, 3, ... -> tanh -> maximum over W -> highway [U, F]

U are the different tokens at hand. Which bytes a token has follows from the tokenizer, so it is no parameter: whatever
opens a model for use gives the table to `set_token_bytes`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigtrain.base import BYTE_SYMBOLS
from bigtrain.config import ModelSettings
from bigtrain.model.cpu.cpu_products import CpuLinear
from bigtrain.model.layers.embedding import InputEmbedding, TokenEmbedding


class CharacterEmbedding(nn.Module):
    """The vector [F] of a token, from its bytes with a mark before and after them."""

    token_bytes: Tensor
    """[V, W] int16, the symbols of `BYTE_SYMBOLS` for each token, padded with 0."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        longest = settings.max_token_bytes + 2
        empty = torch.zeros(settings.vocab_size, longest, dtype=torch.int16)
        self.register_buffer("token_bytes", empty, persistent=False)
        self.multiplier = settings.embedding_multiplier
        self.bytes = TokenEmbedding(BYTE_SYMBOLS, settings.character_size)
        self.filters = nn.ModuleList(
            CpuLinear(width * settings.character_size, filters)
            for width, filters in enumerate(settings.character_filters, start=1)
        )
        self.highway = nn.ModuleList(Highway(settings.embedding_width) for _ in range(settings.highway_layers))

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, T] ids to [B, T, F]."""
        tokens, inverse = torch.unique(input_ids, return_inverse=True)
        symbols = self.token_bytes[tokens].long()
        vectors = self.bytes(symbols)
        # A short token is read as if zeros followed it; otherwise a window has to end inside its token.
        vectors = vectors * (symbols > 0)[..., None]
        lengths = (symbols > 0).sum(1, keepdim=True)
        found = []
        for width, filters in enumerate(self.filters, start=1):
            windows = vectors.unfold(1, width, 1).transpose(2, 3).flatten(2)  # [U, W - width + 1, width d]
            starts = torch.arange(windows.shape[1], device=symbols.device)
            outside = (starts > 0) & (starts + width > lengths)
            scores = filters(windows).masked_fill(outside[..., None], float("-inf"))
            found.append(scores.amax(1).tanh())  # tanh grows, so it may follow the maximum
        x = torch.cat(found, dim=-1)
        for layer in self.highway:
            x = layer(x)
        x = x[inverse]
        multiplier = x.shape[-1] ** 0.5 if self.multiplier == "sqrt_hidden_size" else self.multiplier
        return x if multiplier == 1 else x * multiplier


def token_vectors(settings: ModelSettings) -> CharacterEmbedding | InputEmbedding:
    """What gives tokens their vectors: their bytes, where the settings have filters, or else a table."""
    return CharacterEmbedding(settings) if settings.character_filters else InputEmbedding(settings)


class Highway(nn.Module):
    """t relu(A x) + (1 - t) x, with a gate t that starts almost closed (Srivastava et al., 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transform, self.gate = CpuLinear(width, width), CpuLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [U, F] to [U, F]."""
        gate = (self.gate(x) - 2.0).sigmoid()  # Kim et al. start its bias at -2; here biases start at 0
        return torch.lerp(x, self.transform(x).relu(), gate)

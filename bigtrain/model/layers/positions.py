"""Where a token is in its document: vectors added to embeddings, a rotation of queries and keys, or a bias on scores.

learned, sinusoidal   position_ids [B, T] -> vectors [B, T, C], added to the embeddings
rope                  position_ids -> Rotary, for queries and keys
alibi, t5             distance -> bias [H, L], for scores; of t5 on both sides [H, 2 L - 1]
transformer_xl        distance -> vectors [2 L - 1, C], from which each layer makes keys for scores
none                  nothing
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigtrain.config import ModelSettings
from bigtrain.model.attention.attention_rule import alibi_bias, relative_position_buckets, two_sided_position_buckets
from bigtrain.model.layers.embedding import TokenEmbedding


class RelativeBias(nn.Module):
    """A learned bias for each head and bucket of distances (Raffel et al., 2020, section 2.1), shared by all layers."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.bucket = two_sided_position_buckets if settings.two_sided else relative_position_buckets
        self.buckets = settings.relative_attention_num_buckets
        self.max_distance = settings.relative_attention_max_distance
        self.weight = nn.Parameter(torch.empty(self.buckets, settings.num_attention_heads))

    def forward(self, length: int) -> Tensor:
        """[H, length]: what is added to the score of a token so many places back. Two-sided [H, 2 length - 1], with the
        tokens after the query in front."""
        buckets = self.bucket(length, self.buckets, self.max_distance).to(self.weight.device)
        return self.weight[buckets].t()


class AlibiBias(nn.Module):
    """Scores fall with distance, by each head's own slope (Press et al., 2022)."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.heads = settings.num_attention_heads

    def forward(self, length: int) -> Tensor:
        """[H, length]: what is added to the score of a token so many places back."""
        return alibi_bias(self.heads, length)


class LearnedPositions(TokenEmbedding):
    """A learned vector for each position; the first one may stand in a later row."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings.max_position_embeddings + settings.position_offset, settings.embedding_width)
        self.offset = settings.position_offset

    def forward(self, position_ids: Tensor) -> Tensor:
        """[B, T] positions to [B, T, C]."""
        return super().forward(position_ids + self.offset if self.offset else position_ids)


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of geometric wavelengths (Vaswani et al., 2017, section 3.5)."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.width, self.in_halves = settings.embedding_width, settings.sinusoidal_layout == "halves"

    def forward(self, position_ids: Tensor) -> Tensor:
        """[B, T] positions to [B, T, C], float32."""
        if self.in_halves:  # computed as Hugging Face does, so that both round to the same float32
            steps = torch.arange(0, self.width, 2, device=position_ids.device).double() / self.width
            turns = position_ids[..., None].double() / 10000.0**steps
            return torch.cat((turns.sin(), turns.cos()), dim=-1).float()
        exponents = torch.arange(0, self.width, 2, device=position_ids.device).float() / self.width
        angles = position_ids[..., None].float() / 10000.0**exponents
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def distance_vectors(length: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines [2 L - 1, C] of the distances 1 - L to L - 1 (Dai et al., 2019), float32.

    They are computed as Hugging Face does, so that both round to the same numbers.
    """
    frequencies = 1 / torch.pow(10000, torch.arange(0, width, 2, device=device).float() / width)
    turns = torch.arange(1 - length, length, device=device).float()[:, None] * frequencies
    return torch.cat((turns.sin(), turns.cos()), dim=-1)


def absolute_positions(settings: ModelSettings) -> nn.Module | None:
    """The module from positions to vectors, where there is one."""
    match settings.position_embedding:
        case "learned":
            return LearnedPositions(settings)
        case "sinusoidal":
            return SinusoidalEmbedding(settings)
    return None


def relative_positions(settings: ModelSettings) -> nn.Module | None:
    """The module from a length to a bias by distance, where there is one."""
    match settings.position_embedding:
        case "alibi":
            return AlibiBias(settings)
        case "t5":
            return RelativeBias(settings)
    return None

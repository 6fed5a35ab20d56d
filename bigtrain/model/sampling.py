"""From logits to the next token: what is left to draw from, and the draw.

logits -> repetition penalty -> / temperature -> top-k -> top-p -> min-p -> one uniform number of each row -> token

The order and the meaning of each are those of Hugging Face transformers. Every row has its own stream of random
numbers, so that it draws the same alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bigtrain.base import BigtrainError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; as it stands, from the model's own distribution."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token each time."""
    top_k: int = 0
    """Draw among this many likeliest tokens; 0: among all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have this probability (Holtzman et al., 2020)."""
    min_p: float = 0.0
    """Draw among tokens at least this share as likely as the likeliest (Nguyen et al., 2024)."""
    repetition_penalty: float = 1.0
    """Logits of tokens that the text has already, prompt included, are divided by it where positive, multiplied
    where negative (Keskar et al., 2019)."""
    seed: int = 0
    """Of the random draws."""

    def __post_init__(self) -> None:
        bounds = {
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 <= self.top_p <= 1, "from 0 to 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "more than 0; 1 is none"),
        }
        for name, (holds, wanted) in bounds.items():
            if not holds:
                raise BigtrainError(
                    f"tokens cannot be drawn with this {name}", found=getattr(self, name), wanted=wanted
                )


class Sampler:
    """Draws a token for each row, again and again."""

    def __init__(
        self, sampling: Sampling, prompts: Sequence[Sequence[int]], vocab_size: int, device: torch.device
    ) -> None:
        """For rows that begin with these prompts; ids from `vocab_size` on are never drawn."""
        self.sampling, self.vocab_size = sampling, vocab_size
        self._generators = [torch.Generator().manual_seed(sampling.seed) for _ in prompts]
        self._seen: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self._seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
            for row, prompt in enumerate(prompts):
                self._seen[row, [token for token in prompt if token < vocab_size]] = True

    def draw(self, logits: Tensor) -> Tensor:
        """[B, V] logits to [B] tokens."""
        scores = logits[:, : self.vocab_size].to(torch.promote_types(logits.dtype, torch.float32))
        if self._seen is not None:
            scores = penalise_repetition(scores, self._seen, self.sampling.repetition_penalty)
        if self.sampling.temperature == 0:
            tokens = scores.argmax(dim=-1)
        else:
            # One number a row and token, drawn on the CPU whatever the device.
            uniform = torch.cat([torch.rand(1, dtype=torch.float64, generator=own) for own in self._generators])
            tokens = draw(candidates(scores, self.sampling), uniform.to(logits.device))
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        return tokens

    def keep(self, rows: Sequence[int]) -> None:
        """Leave only these rows, by number and in this order."""
        self._generators = [self._generators[row] for row in rows]
        if self._seen is not None:
            self._seen = self._seen[list(rows)]


def penalise_repetition(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Scores [B, V], lower where `seen` [B, V]."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def candidates(scores: Tensor, sampling: Sampling) -> Tensor:
    """Scores [B, V] over the temperature, minus infinity for tokens that are not to be drawn."""
    never = float("-inf")
    scores = scores / sampling.temperature
    if sampling.top_k:
        least = scores.topk(min(sampling.top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, never)
    if sampling.top_p < 1:
        ascending, tokens = scores.sort(dim=-1)
        unlikely = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - sampling.top_p
        unlikely[:, -1] = False
        scores = scores.masked_fill(unlikely.scatter(1, tokens, unlikely), never)
    if sampling.min_p:
        probabilities = scores.softmax(dim=-1)
        scores = scores.masked_fill(probabilities < sampling.min_p * probabilities.amax(-1, keepdim=True), never)
    return scores


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """The token [B] at which the distribution function of softmax(scores) [B, V] passes `uniform` [B], of [0, 1)."""
    probabilities = scores.double().softmax(dim=-1)
    passed = probabilities.cumsum(dim=-1)
    tokens = torch.searchsorted(passed, uniform[:, None] * passed[:, -1:], right=True)
    # Sums are rounded, on a GPU not even in order: step back to a token that can be drawn.
    ids = torch.arange(scores.shape[-1], device=scores.device)
    possible = torch.where(probabilities > 0, ids, 0).cummax(dim=-1).values
    return possible.gather(1, tokens.clamp(max=scores.shape[-1] - 1))[:, 0]

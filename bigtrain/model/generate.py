"""Sampling text from a decoder, one token at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from bigtrain.model.decoder import Decoder


@torch.no_grad()
def generate(
    model: Decoder,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    end_of_text: int | None = None,
    vocab_size: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Continue prompts of equal length. The same arguments give the same tokens.

    Args:
        model: the decoder; its context is cut to the last `max_position_embeddings` tokens.
        input_ids: [B, T] prompt tokens, T at least 1.
        max_new_tokens: how many to add at most.
        temperature: divides the logits; 0 takes the likeliest token each time.
        top_k: sample among this many likeliest tokens.
        top_p: sample among the likeliest tokens that together have this probability (Holtzman et al., 2020).
        end_of_text: a row ends with this token and is filled up with it.
        vocab_size: ids from here on are never drawn: an embedding may have more rows than the tokenizer has tokens.
        seed: of the random draws.

    Returns:
        [B, T + new] prompt and continuation.
    """
    generator = torch.Generator(input_ids.device).manual_seed(seed)
    done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
    for _ in range(max_new_tokens):
        context = input_ids[:, -model.settings.max_position_embeddings :]
        logits = model.lm_head(model.hidden(context)[:, -1]).float()[:, :vocab_size]
        token = _sample(logits, temperature, top_k, top_p, generator)
        if end_of_text is not None:
            token = token.masked_fill(done[:, None], end_of_text)
            done |= token[:, 0] == end_of_text
        input_ids = torch.cat((input_ids, token), dim=1)
        if done.all():
            break
    return input_ids


def _sample(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> Tensor:
    """[B, V] logits to [B, 1] tokens."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits, tokens = (logits / temperature).sort(dim=-1, descending=True)
    if top_k is not None:
        logits[:, top_k:] = float("-inf")
    probabilities = logits.softmax(dim=-1)
    if top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return tokens.gather(1, torch.multinomial(probabilities, 1, generator=generator))

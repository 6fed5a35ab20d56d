"""Continuing prompts, one token at a time for all of them together.

prompts, packed  --one forward pass-->  cache, logits of what follows each
                 --draw-->  a token for each row  --one forward pass of these alone-->  logits of what follows
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.model.attention.cache import KeyValueCache
from bigtrain.model.sampling import Sampler, Sampling
from bigtrain.model.transformer import Transformer

Ended = Literal["end_of_text", "stop", "length", "context"]
"""Why a text is no longer: its last token ends a text, the caller stopped it, `max_new_tokens` are there, or there is
no room for more in the model's context."""


@dataclass(frozen=True)
class Completion:
    """What comes after a prompt."""

    tokens: list[int]
    """With the one that ended the text."""
    ended: Ended


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    two_sided_prompts: bool = False,
    end_of_text: Collection[int] = (),
    vocab_size: int | None = None,
    stops: Callable[[int, int], bool] = lambda row, token: False,
    ends: Callable[[int, Ended], None] = lambda row, why: None,
) -> list[Completion]:
    """Continue prompts, of any lengths. What a row becomes does not depend on the rows beside it.

    A text ends where `max_position_embeddings` tokens have been read, whatever the kind of positions: what a model
    makes of places that it was never shown is not for us to guess.

    Args:
        model: the decoder.
        prompts: token ids, at least one for each.
        max_new_tokens: how many to add at most.
        sampling: how tokens are drawn.
        two_sided_prompts: let the tokens of a prompt see those after them in the prompt, too, as a model that learned
            by the objective `prefix` does.
        end_of_text: a row ends with one of these.
        vocab_size: ids from here on are never drawn: an embedding may have more rows than the tokenizer has tokens.
        stops: called with the number of a prompt and each token that comes after it; True ends the row.
        ends: called with the number of a prompt at once when its row has ended, and why.

    Returns:
        A completion for each prompt.

    Raises:
        BigtrainError: a prompt is longer than the context, or the model is an encoder.
    """
    require_decoder(model.settings)
    context = model.settings.max_position_embeddings
    require_room(prompts, context)
    device = model.embed_tokens.weight.device
    cache = KeyValueCache(model.settings, [len(prompt) for prompt in prompts], device)
    sampler = Sampler(
        sampling or Sampling(), prompts, min(vocab_size or model.settings.vocab_size, model.settings.vocab_size), device
    )
    completions: list[list[int]] = [[] for _ in prompts]
    ended: dict[int, Ended] = {}
    rows = list(range(len(prompts)))  # the prompts that the rows of the batch continue
    logits = read_prompts(model, prompts, cache, two_sided=two_sided_prompts) if prompts else torch.empty(0)
    while rows:
        tokens = sampler.draw(logits)
        for row, length, token in zip(rows, cache.lengths, tokens.tolist(), strict=True):
            completions[row].append(token)
            stopped = stops(row, token)
            if token in end_of_text:
                ended[row] = "end_of_text"
            elif stopped:
                ended[row] = "stop"
            elif len(completions[row]) >= max_new_tokens:
                ended[row] = "length"
            elif length >= context:
                ended[row] = "context"
            if row in ended:
                ends(row, ended[row])
        going = [index for index, row in enumerate(rows) if row not in ended]
        if len(going) < len(rows):
            rows = [rows[index] for index in going]
            cache.keep(going)
            sampler.keep(going)
            tokens = tokens[going]
        if rows:
            logits = read_next(model, tokens, cache)
    return [Completion(tokens, ended[row]) for row, tokens in enumerate(completions)]


def read_prompts(
    model: Transformer, prompts: Sequence[Sequence[int]], cache: KeyValueCache, *, two_sided: bool = False
) -> Tensor:
    """Fill an empty cache; returns the logits [B, V] of what follows each prompt, whose tokens may see each other."""
    packed = torch.tensor([[token for prompt in prompts for token in prompt]], device=cache.positions.device)
    ranks = torch.zeros_like(packed) if two_sided else None
    longest = max(cache.lengths)
    hidden = model.hidden(packed, cache.prompt_positions, cache.cu_seqlens, longest, cache, order_ranks=ranks)
    return model.lm_head(hidden[0, cache.cu_seqlens[1:].long() - 1])


def read_next(model: Transformer, tokens: Tensor, cache: KeyValueCache) -> Tensor:
    """Add a token [B] to each row; returns the logits [B, V] of what follows."""
    hidden = model.hidden(tokens[:, None], cache.positions[:, None], max_seqlen=cache.longest, cache=cache)
    cache.advance()
    return model.lm_head(hidden[:, 0])


def require_decoder(settings: ModelSettings) -> None:
    """Refuse to generate text with a model that predicts no next token. Raises BigtrainError."""
    if settings.architecture == "decoder":
        return
    name, why = {
        "encoder": ("encoder", "it predicts tokens inside a text that it sees as a whole"),
        "two_stream": (
            "XLNet",
            "it predicts tokens at places inside a text, and keeps no keys and values of earlier ones",
        ),
        "encoder_decoder": ("encoder-decoder", "it writes another text, after reading a whole one"),
    }[settings.architecture]
    raise BigtrainError(
        f"an {name} continues no text: {why}",
        found=f"a {settings.family} model, model.architecture {settings.architecture}",
        wanted="a model with model.architecture decoder",
        fix=f"take a decoder; or export the {name} with `bigtrain export` and use it in transformers",
    )


def require_room(prompts: Sequence[Sequence[int]], context: int) -> None:
    """Refuse prompts that are longer than the context. Raises BigtrainError."""
    for number, prompt in enumerate(prompts, start=1):
        if len(prompt) > context:
            raise BigtrainError(
                f"prompt {number} of {len(prompts)} does not fit into the model's context",
                found=f"{len(prompt)} tokens",
                wanted=f"at most {context}, model.max_position_embeddings",
                fix="shorten the prompt",
            )

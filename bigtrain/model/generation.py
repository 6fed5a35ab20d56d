"""Continuing prompts, one token at a time for all of them together.

what is read, packed  --encoder, once-->  its states                             of an encoder-decoder alone
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
from bigtrain.model.cache import Cache, boundaries, packed_positions
from bigtrain.model.encoder_decoder import EncoderDecoder
from bigtrain.model.language_model import LanguageModel
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
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    read: Sequence[Sequence[int]] | None = None,
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
        model: a decoder, a recurrent model or an encoder-decoder.
        prompts: token ids, at least one for each. Of an encoder-decoder, what its decoder's texts begin with: mostly
            the token that its objective starts them with, alone.
        max_new_tokens: how many to add at most.
        read: of an encoder-decoder, and of it alone: the ids that its encoder reads for each prompt, at least one.
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
        BigtrainError: a prompt or what is read is longer than the context, or the model is an encoder.
    """
    require_decoder(model.settings)
    context = model.settings.max_position_embeddings - model.virtual_tokens
    for each in (prompts, read or ()):
        require_room(each, context)
    device = model.device
    cache = model.new_cache([*map(len, prompts)], device, None if read is None else [*map(len, read)])
    sampler = Sampler(
        sampling or Sampling(), prompts, min(vocab_size or model.settings.vocab_size, model.settings.vocab_size), device
    )
    completions: list[list[int]] = [[] for _ in prompts]
    ended: dict[int, Ended] = {}
    rows = list(range(len(prompts)))  # the prompts that the rows of the batch continue
    logits = read_prompts(model, prompts, cache, read, two_sided=two_sided_prompts) if prompts else torch.empty(0)
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
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    cache: Cache,
    read: Sequence[Sequence[int]] | None = None,
    *,
    two_sided: bool = False,
) -> Tensor:
    """Fill an empty cache; returns the logits [B, V] of what follows each prompt, whose tokens may see each other."""
    device = cache.positions.device
    packed = _packed(prompts, device)
    inputs = (packed, cache.prompt_positions, cache.cu_seqlens, max(cache.lengths), cache)
    if isinstance(model, EncoderDecoder):
        assert read is not None and len(read) == len(prompts)
        lengths = boundaries([*map(len, read)], device)
        encoded = model.encode(_packed(read, device), packed_positions(lengths), lengths, max(map(len, read)))
        hidden = model.hidden(*inputs, encoded=encoded)
    elif two_sided:
        assert isinstance(model, Transformer)  # its objective says so
        hidden = model.hidden(*inputs, order_ranks=torch.zeros_like(packed))
    else:
        hidden = model.hidden(*inputs)
    return model.lm_head(hidden[0, cache.cu_seqlens[1:].long() - 1])


def read_next(model: LanguageModel, tokens: Tensor, cache: Cache) -> Tensor:
    """Add a token [B] to each row; returns the logits [B, V] of what follows."""
    hidden = model.hidden(tokens[:, None], cache.positions[:, None], max_seqlen=cache.longest, cache=cache)
    cache.advance()
    return model.lm_head(hidden[:, 0])


def _packed(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """[1, N] the ids of rows, end to end."""
    return torch.tensor([[token for row in rows for token in row]], device=device)


def require_decoder(settings: ModelSettings) -> None:
    """Refuse to generate text with a model that predicts no next token. Raises BigtrainError."""
    if settings.writes_text:
        return
    if settings.task_head != "none":
        raise BigtrainError(
            "this model continues no text: it has the head of a task in the place of the one that predicts tokens",
            found=f"model.task_head {settings.task_head}",
            wanted="model.task_head none",
            fix="use a run that predicts tokens, such as the one that this model started from",
        )
    name, why = {
        "encoder": ("an encoder", "it predicts tokens inside a text that it sees as a whole"),
        "two_stream": (
            "an XLNet",
            "it predicts tokens at places inside a text, and keeps no keys and values of earlier ones",
        ),
        "recurrent_encoder_decoder": (
            "a recurrent encoder-decoder",
            "it is here to be measured, and has no cache",
        ),
    }[settings.architecture]
    raise BigtrainError(
        f"{name} continues no text: {why}",
        found=f"a {settings.family} model, model.architecture {settings.architecture}",
        wanted="a model with model.architecture decoder, recurrent or encoder_decoder",
        fix="take one of these; or export an encoder with `bigtrain export` and use it in transformers",
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

"""Virtual tokens in front of every document, as embeddings or keys and values: packed, and token by token."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.config import AdapterSettings
from bigtrain.model import LanguageModel, Sampling, build_model, generate
from bigtrain.model.attention.virtual_tokens import VirtualPlaces
from tests.model.helpers import packed_batch, random_boundaries, small_settings

P = 3


METHODS = ("prefix_tuning", "prompt_tuning")
LEARNING = ("prefix_key", "prefix_value", "prompt_embeddings")


def prefixed(method: Any, family: str = "llama", backend: str = "reference", **shape: Any) -> LanguageModel:
    adapter = AdapterSettings(method=method, num_virtual_tokens=P)
    model = build_model(small_settings(family, **shape), attn_implementation=backend, adapter=adapter)
    model.init_weights(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(LEARNING):
                parameter.mul_(30)
    return model.double().eval()


@given(seed=st.integers(0, 99), count=st.integers(1, 5))
def test_virtual_tokens_stand_in_front_of_each_document(seed: int, count: int) -> None:
    bounds = random_boundaries(2, 12, seed)
    places = VirtualPlaces.of(bounds, 12, count)
    tokens, virtual = torch.arange(24) + 100, torch.arange(count)
    placed = places.placed(tokens, virtual)
    assert torch.equal(places.taken(placed), tokens)
    for document, (start, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        first, last = places.cu_seqlens[document : document + 2].tolist()
        assert torch.equal(placed[first:last], torch.cat((virtual, tokens[start:end])))
    assert places.max_seqlen == 12 + count


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("backend", ["reference", "sdpa", "blockwise"])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("method", METHODS)
def test_documents_of_a_row_see_virtual_tokens_and_not_each_other(
    method: str, family: str, backend: str, window: int | None
) -> None:
    """Packed, each document has the hidden states that it has alone, with every back-end and a window."""
    model = prefixed(method, family, backend, **({"sliding_window": window} if window and family == "llama" else {}))
    batch = packed_batch(2, 16, 96, seed=4)
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "cu_seqlens", "max_seqlen")}
    packed = model.hidden(**inputs).flatten(0, 1)
    plain = build_model(model.settings, attn_implementation=backend).double().eval()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(own[name])
    bounds = batch["cu_seqlens"].tolist()
    for start, end in pairwise(bounds):
        ids = batch["input_ids"].flatten()[None, start:end]
        torch.testing.assert_close(packed[start:end], model.hidden(ids)[0], rtol=1e-9, atol=1e-9)
        assert (packed[start:end] - plain.hidden(ids)[0]).abs().max() > 1e-3  # the prefix is seen


@pytest.mark.parametrize("method", METHODS)
def test_virtual_tokens_alone_learn_and_have_a_gradient(method: str) -> None:
    model = prefixed(method).train()
    model(**packed_batch(2, 16, 96, seed=1)).backward()
    for name, parameter in model.named_parameters():
        learns = name.endswith(LEARNING)
        assert parameter.requires_grad == learns
        assert (parameter.grad is not None and bool(parameter.grad.any())) == learns


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("method", METHODS)
def test_generation_after_virtual_tokens_takes_the_likeliest_ones(method: str, window: int | None) -> None:
    """Token by token from the cache as without it, for prompts of different lengths."""
    model = prefixed(method, **({"sliding_window": window} if window else {}))
    prompts = [[5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15, 16]]
    found = generate(model, prompts, max_new_tokens=6, sampling=Sampling(temperature=0.0))
    for prompt, made in zip(prompts, found, strict=True):
        ids = list(prompt)
        for token in made.tokens:
            logits = model.logits(torch.tensor([ids]))[0, -1]
            assert logits[token] >= logits.max() - 1e-9
            ids.append(token)


@pytest.mark.parametrize("method", METHODS)
def test_virtual_tokens_take_room_in_the_context(method: str) -> None:
    (made,) = generate(prefixed(method), [[5] * 60], max_new_tokens=9)
    assert made.ended == "context" and len(made.tokens) == 64 - P - 60 + 1

"""Generation is deterministic and keeps to its limits."""

from __future__ import annotations

import pytest
import torch
from model_support import small_settings

from bigtrain.model import Decoder, build_model, generate


@pytest.fixture(scope="module")
def model() -> Decoder:
    decoder = build_model(small_settings(initializer_range=0.5))
    decoder.init_weights(0)
    return decoder


PROMPT = torch.tensor([[1, 2, 3], [4, 5, 6]])


def test_greedy_takes_the_likeliest_token_of_the_full_logits(model: Decoder) -> None:
    tokens = generate(model, PROMPT, max_new_tokens=10, temperature=0)
    logits = model.logits(tokens)
    assert torch.equal(tokens[:, 3:], logits[:, 2:-1].argmax(-1))
    assert torch.equal(tokens[:, :3], PROMPT)


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(model: Decoder) -> None:
    a, b, c = (generate(model, PROMPT, max_new_tokens=20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_top_k_of_one_and_a_tiny_top_p_are_greedy(model: Decoder) -> None:
    greedy = generate(model, PROMPT, max_new_tokens=8, temperature=0)
    assert torch.equal(generate(model, PROMPT, max_new_tokens=8, top_k=1), greedy)
    assert torch.equal(generate(model, PROMPT, max_new_tokens=8, top_p=1e-6), greedy)


def test_a_row_ends_with_end_of_text_and_the_context_may_be_exceeded(model: Decoder) -> None:
    greedy = generate(model, PROMPT, max_new_tokens=70, temperature=0)
    assert greedy.shape == (2, 73)
    end = int(greedy[0, 5])
    ended = generate(model, PROMPT[:1], max_new_tokens=70, temperature=0, end_of_text=end)
    assert ended[0, -1] == end
    assert end not in ended[0, 3:-1]


def test_an_id_that_the_tokenizer_does_not_have_is_never_drawn(model: Decoder) -> None:
    greedy = generate(model, PROMPT, max_new_tokens=8, temperature=0)
    limit = int(greedy[:, 3:].max())  # which without a limit is drawn
    limited = generate(model, PROMPT, max_new_tokens=8, temperature=0, vocab_size=limit)
    assert torch.equal(limited[:, 3:], model.logits(limited)[:, 2:-1, :limit].argmax(-1))
    for options in ({}, {"top_k": 5}, {"top_p": 0.9}, {"temperature": 5.0}):
        assert generate(model, PROMPT, max_new_tokens=8, vocab_size=limit, **options)[:, 3:].max() < limit
    assert generate(model, PROMPT, max_new_tokens=8, temperature=5.0)[:, 3:].max() >= limit

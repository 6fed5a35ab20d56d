"""Generation with a cache is the model's own distribution, row by row, and keeps to its limits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config.families import FAMILIES
from bigtrain.model import Decoder, Sampling, build_model, generate
from bigtrain.model.attention.cache import KeyValueCache
from bigtrain.model.generation import read_next, read_prompts
from bigtrain.model.sampling import candidates, draw, penalise_repetition
from tests.model.helpers import relative_error, small_settings
from tests.model.test_choices import CHOICES, decoder

GREEDY = Sampling(temperature=0)
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]


@pytest.fixture(scope="module")
def model() -> Decoder:
    built = build_model(small_settings(initializer_range=0.5)).double()
    built.init_weights(0)
    return built


def tokens(model: Decoder, prompts: list[list[int]] = PROMPTS, **options: Any) -> list[list[int]]:
    return [completion.tokens for completion in generate(model, prompts, **options)]


LAYERS = st.sampled_from([(), ("sliding_attention", "full_attention")])


@settings(max_examples=25, deadline=None)
@given(
    choices=st.fixed_dictionaries(CHOICES),
    layer_types=LAYERS,
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    dropped=st.integers(0, 3),
)
def test_logits_from_the_cache_are_those_of_the_whole_text(
    choices: dict[str, Any], layer_types: tuple[str, ...], lengths: list[int], dropped: int
) -> None:
    """Over all choices, for prompts of different lengths, past a sliding window, and after a row has left."""
    if choices["sliding_window"] is not None:
        choices |= {"layer_types": layer_types}
    compare_with_uncached(decoder(choices, attn_implementation="reference"), lengths, steps=9, dropped=dropped)


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 100}, {"position_embedding": "t5", "sliding_window": 70}])
def test_the_cache_grows_with_its_rows(changes: dict[str, Any]) -> None:
    model = decoder({"max_position_embeddings": 256, **changes}, attn_implementation="reference")
    compare_with_uncached(model, [60, 3, 130], steps=85, dropped=1, every=21)


@pytest.mark.parametrize("family", [name for name in FAMILIES if "architecture" not in FAMILIES[name]])
def test_every_family_generates_from_its_cache(family: str) -> None:
    compare_with_uncached(decoder({"family": family}, attn_implementation="reference"), [5, 3, 1], steps=4, dropped=0)


def compare_with_uncached(model: Decoder, lengths: list[int], steps: int, dropped: int, every: int = 1) -> None:
    random = torch.Generator().manual_seed(sum(lengths))
    texts = [torch.randint(96, (length,), generator=random).tolist() for length in lengths]
    with torch.no_grad():
        cache = KeyValueCache(model.settings, lengths, torch.device("cpu"))
        logits = read_prompts(model, texts, cache)
        for step in range(steps):
            if step == steps // 2 and len(texts) > 1:
                going = [row for row in range(len(texts)) if row != dropped % len(texts)]
                texts, logits = [texts[row] for row in going], logits[going]
                cache.keep(going)
            if step % every == 0:
                alone = torch.stack([model.logits(torch.tensor([text]))[0, -1] for text in texts])
                assert relative_error(logits, alone) < 1e-10
            new = torch.randint(96, (len(texts),), generator=random)
            texts = [[*text, token] for text, token in zip(texts, new.tolist(), strict=True)]
            logits = read_next(model, new, cache)


def test_a_sliding_window_holds_no_more_than_its_window() -> None:
    model = decoder(
        {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}, attn_implementation="reference"
    )
    cache = KeyValueCache(model.settings, [40], torch.device("cpu"))
    with torch.no_grad():
        read_prompts(model, [[1] * 40], cache)
        read_next(model, torch.tensor([2]), cache)
    assert [keys.shape[2] for keys in cache._keys] == [5, 64]


def test_greedy_takes_the_likeliest_token_of_the_full_logits(model: Decoder) -> None:
    for prompt, new in zip(PROMPTS, tokens(model, max_new_tokens=10, sampling=GREEDY), strict=True):
        logits = model.logits(torch.tensor([prompt + new]))[0]
        assert new == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


@settings(max_examples=6, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    seed=st.integers(0, 2**40),
    penalty=st.sampled_from([1.0, 1.3]),
    min_p=st.sampled_from([0.0, 0.05]),
)
def test_a_text_is_the_same_alone_and_in_any_batch(
    model: Decoder, lengths: list[int], seed: int, penalty: float, min_p: float
) -> None:
    sampling = Sampling(temperature=1.5, top_p=0.95, min_p=min_p, repetition_penalty=penalty, seed=seed)
    prompts = [[(7 * row + place) % 96 for place in range(length)] for row, length in enumerate(lengths)]
    together = tokens(model, prompts, max_new_tokens=12, sampling=sampling, end_of_text=range(8))
    assert together == [
        tokens(model, [prompt], max_new_tokens=12, sampling=sampling, end_of_text=range(8))[0] for prompt in prompts
    ]


def test_another_seed_gives_other_tokens(model: Decoder) -> None:
    a, b, c = (tokens(model, max_new_tokens=20, sampling=Sampling(seed=seed)) for seed in (1, 1, 2))
    assert a == b != c


def test_why_a_row_ended(model: Decoder) -> None:
    (free,) = generate(model, PROMPTS[:1], max_new_tokens=9, sampling=GREEDY)
    assert (free.ended, len(free.tokens)) == ("length", 9)
    end = free.tokens[4]
    until = free.tokens[: free.tokens.index(end) + 1]
    (ended,) = generate(model, PROMPTS[:1], max_new_tokens=9, sampling=GREEDY, end_of_text=[end])
    assert (ended.ended, ended.tokens) == ("end_of_text", until)
    (stopped,) = generate(model, PROMPTS[:1], max_new_tokens=9, sampling=GREEDY, stops=lambda row, token: token == end)
    assert (stopped.ended, stopped.tokens) == ("stop", until)


@pytest.mark.parametrize("positions", ["learned", "rope", "alibi"])
def test_a_text_ends_where_the_context_is_full(positions: str) -> None:
    """A text ends where the context is full and a longer prompt is refused."""
    model = decoder({"position_embedding": positions, "max_position_embeddings": 16}, attn_implementation="reference")
    short, full = generate(model, [[1] * 10, [1] * 16], max_new_tokens=50, sampling=GREEDY)
    assert (short.ended, len(short.tokens)) == ("context", 7)  # the last one drawn need not be read
    assert (full.ended, len(full.tokens)) == ("context", 1)
    with pytest.raises(BigtrainError, match="prompt 2 of 2") as refused:
        generate(model, [[1], [1] * 17], max_new_tokens=1)
    assert "17 tokens" in str(refused.value) and "at most 16" in str(refused.value)


def test_an_id_that_the_tokenizer_does_not_have_is_never_drawn(model: Decoder) -> None:
    greedy = tokens(model, max_new_tokens=8, sampling=GREEDY)
    limit = max(map(max, greedy))  # which without a limit is drawn
    for sampling in (GREEDY, Sampling(), Sampling(top_k=5), Sampling(top_p=0.9), Sampling(temperature=5, min_p=0.01)):
        assert max(map(max, tokens(model, max_new_tokens=8, vocab_size=limit, sampling=sampling))) < limit
    assert max(map(max, tokens(model, max_new_tokens=8, sampling=Sampling(temperature=5)))) >= limit


def random_scores(rows: int, seed: int, decimals: int) -> torch.Tensor:
    """[rows, 50], with ties where they are rounded to whole numbers."""
    return torch.randn(rows, 50, generator=torch.Generator().manual_seed(seed)).mul(4).round(decimals=decimals)


@settings(max_examples=100, deadline=None)
@given(
    scores=st.builds(random_scores, st.integers(1, 3), st.integers(0, 2**30), st.sampled_from([0, 6])),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 7, 60]),
    top_p=st.sampled_from([0.0, 0.1, 0.7, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    penalty=st.sampled_from([1.0, 0.8, 1.7]),
    seed=st.integers(0, 100),
)
def test_scores_are_those_of_transformers_processors_in_their_order(
    scores: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, seed: int
) -> None:
    transformers = pytest.importorskip("transformers")
    ids = torch.randint(50, (scores.shape[0], 6), generator=torch.Generator().manual_seed(seed))
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p or None,
        repetition_penalty=penalty,
    )
    theirs = object.__new__(transformers.GenerationMixin)
    theirs.config = SimpleNamespace(is_encoder_decoder=False)
    wanted = theirs._get_logits_processor(config, input_ids_seq_length=6)(ids, scores.clone())
    ours = candidates(
        penalise_repetition(scores, torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, ids, True), penalty),
        Sampling(temperature, top_k, top_p, min_p, penalty),
    )
    assert torch.equal(ours, wanted)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    scores = torch.tensor([0.0, float("-inf"), 1.0, 2.0, float("-inf")])
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    drawn = draw(scores.expand(10_000, 5), uniform).bincount(minlength=5) / 10_000
    assert torch.allclose(drawn, scores.softmax(0), atol=2e-4)
    assert drawn[1] == drawn[4] == 0
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(scores.expand(2, 5), edges).tolist() == [0, 3]
    assert draw(scores.flip(0).expand(2, 5), edges).tolist() == [1, 4]


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 1.1}, {"min_p": -0.1}, {"repetition_penalty": 0}]
)
def test_a_way_of_drawing_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BigtrainError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]

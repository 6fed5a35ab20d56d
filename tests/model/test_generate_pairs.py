"""Generation by encoder-decoders: what is read is computed once, and texts are those that transformers generates."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bigtrain.base.errors import BigtrainError
from bigtrain.model import EncoderDecoder, Sampling, generate
from bigtrain.model.attention.cache import KeyValueCache
from bigtrain.model.generation import read_next, read_prompts
from tests.model.helpers import exact_t5, relative_error
from tests.model.test_encoder_decoder import FAMILIES_OF_BOTH, VOCABULARY, built, in_transformers

GREEDY = Sampling(temperature=0, repetition_penalty=1.5)
"""With a penalty, for models of random weights repeat one token."""
START, END = 0, 1


def texts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("family", FAMILIES_OF_BOTH)
def test_greedy_texts_are_those_of_transformers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: a batch here, and there each text alone, up to the token that ends a text."""
    from transformers import GenerationConfig

    exact_t5(monkeypatch)
    ours = built(family)
    theirs = in_transformers(ours)
    read = texts([17, 5, 1, 30], seed=3)
    # A token that is likely enough to end some of the texts, and not all of them at once.
    free = generate(ours, [[START]] * len(read), read=read, max_new_tokens=24, sampling=GREEDY)
    end = free[0].tokens[7]
    found = generate(ours, [[START]] * len(read), read=read, max_new_tokens=24, sampling=GREEDY, end_of_text=[end])
    assert found[0].ended == "end_of_text" and len(set(free[0].tokens)) > 3
    theirs.generation_config = GenerationConfig(
        decoder_start_token_id=START, eos_token_id=end, pad_token_id=START, max_new_tokens=24, do_sample=False,
        repetition_penalty=GREEDY.repetition_penalty,
    )  # fmt: skip
    for own, ids in zip(found, read, strict=True):
        # Its cache of a T5 has as many layers as the encoder (transformers 5.x), and this decoder has more.
        wanted = theirs.generate(torch.tensor([ids]), use_cache=False)
        assert [START, *own.tokens] == wanted[0].tolist()


@pytest.mark.parametrize("family", FAMILIES_OF_BOTH)
@pytest.mark.parametrize("lengths", [[9, 9], [3, 14, 1, 70]])
def test_logits_from_the_caches_are_those_of_both_texts(family: str, lengths: list[int]) -> None:
    """For decoders that begin with texts of any lengths, and after a row has left, the longest one among them."""
    changes: dict[str, Any] = {"max_position_embeddings": 80}
    model = built(family, changes=changes, attn_implementation="reference")
    read, written = texts(lengths, seed=1), texts([1 + row % 3 for row in range(len(lengths))], seed=2)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        cache = KeyValueCache(model.settings, [*map(len, written)], torch.device("cpu"), lengths)
        logits = read_prompts(model, written, cache, read)
        for step in range(8):
            if step == 4:
                going = list(range(len(written) - 1))
                cache.keep(going)
                read, written, logits = read[:-1], written[:-1], logits[going]
            alone = torch.stack(
                [
                    model.logits(torch.tensor([own]), encoder_input_ids=torch.tensor([ids]))[0, -1]
                    for own, ids in zip(written, read, strict=True)
                ]
            )
            assert relative_error(logits, alone) < 1e-10
            new = torch.randint(VOCABULARY, (len(written),), generator=generator)
            written = [[*own, token] for own, token in zip(written, new.tolist(), strict=True)]
            logits = read_next(model, new, cache)


def test_what_is_read_is_computed_once() -> None:
    model = built("t5")
    calls = {"encoder": 0, "keys": 0, "queries": 0}

    def count(name: str, module: torch.nn.Module) -> None:
        def called(*_: Any) -> None:
            calls[name] += 1

        module.register_forward_hook(called)

    assert isinstance(model, EncoderDecoder)
    count("encoder", model.encoder.norm)
    for layer in model.layers:
        count("keys", layer.cross_attn.k_proj)
        count("queries", layer.cross_attn.q_proj)
    generate(model, [[START], [START]], read=texts([4, 6]), max_new_tokens=5)
    layers = len(model.layers)
    assert calls == {"encoder": 1, "keys": layers, "queries": 5 * layers}


def test_a_text_is_the_same_alone_and_in_any_batch() -> None:
    model, read = built("bart"), texts([12, 3, 25])
    sampling = Sampling(temperature=1.3, top_p=0.9, repetition_penalty=1.2, seed=5)

    def drawn(rows: list[list[int]]) -> list[list[int]]:
        options: dict[str, Any] = {"max_new_tokens": 15, "sampling": sampling, "end_of_text": range(END, 9)}
        return [each.tokens for each in generate(model, [[START]] * len(rows), read=rows, **options)]

    assert drawn(read) == [drawn([row])[0] for row in read]


def test_a_text_to_read_that_is_too_long_is_refused() -> None:
    with pytest.raises(BigtrainError, match="does not fit into the model's context"):
        generate(built("t5"), [[START]], read=[[3] * 65], max_new_tokens=1)

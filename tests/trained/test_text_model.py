"""Text is shown as it is made, and is the same however it was cut into tokens, pieces and batches."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from bigtrain.base.errors import BigtrainError
from bigtrain.cli.texts import InTurn, read_prompts
from bigtrain.config.data_settings import TokenizerSettings
from bigtrain.config.model_settings import ModelSettings
from bigtrain.data.format.tokenizer import parse_tokenizer, train_tokenizer, vocabulary_size
from bigtrain.model import Sampling, build_model
from bigtrain.trained.text_model import TextModel
from bigtrain.trained.text_stream import Characters, StopStrings


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = (f"the number {number} of many, größer 😀" for number in range(500))
    return parse_tokenizer(train_tokenizer(TokenizerSettings(vocab_size=300), texts))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> TextModel:
    """A random one, whose embedding has many more rows than there are tokens."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    decoder = build_model(
        ModelSettings.model_validate(
            {**shape, "vocab_size": 512, "max_position_embeddings": 64, "initializer_range": 0.3}
        )
    )
    decoder.init_weights(0)
    end_of_text = tokenizer.token_to_id("<|endoftext|>")
    return TextModel(decoder.eval(), tokenizer, (end_of_text,), end_of_text)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_only_tokens_that_the_tokenizer_has_are_drawn(model: TextModel, temperature: float) -> None:
    """Of an embedding of 512 rows for 300 tokens, nearly half would be drawn from the rows of no token."""
    made = model.continue_texts(["the"] * 3, max_new_tokens=30, sampling=Sampling(temperature, seed=1)).texts
    assert vocabulary_size(model.tokenizer) == 300
    assert max(max(text.tokens) for text in made) < 300


@settings(max_examples=10, deadline=None)
@given(prompts=st.lists(st.text("the numbr1ö😀 ", max_size=8), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_what_is_shown_is_the_completion_whatever_the_batch(model: TextModel, prompts: list[str], seed: int) -> None:
    shown = [""] * len(prompts)
    reasons: list[list[str]] = [[] for _ in prompts]

    def show(number: int, text: str, ended: str | None) -> None:
        assert not reasons[number]
        shown[number] += text
        reasons[number] += [ended] if ended else []

    options = {"max_new_tokens": 20, "sampling": Sampling(1.5, seed=seed), "stop": ["e", "ö1"]}
    made = model.continue_texts(prompts, batch_size=2, show=show, **options).texts  # type: ignore[arg-type]
    assert [text.completion for text in made] == shown
    assert [[text.ended] for text in made] == reasons
    for text in made:
        alone = model.continue_texts([text.prompt], **options).texts[0]  # type: ignore[arg-type]
        assert alone == text
        everything = decoded(model, text.tokens)
        assert ("e" in everything or "ö1" in everything) == (text.ended == "stop")
        cut = min((everything.find(stop) for stop in ("e", "ö1") if stop in everything), default=len(everything))
        assert text.completion == everything[:cut]


def decoded(model: TextModel, tokens: list[int]) -> str:
    return model.tokenizer.decode([token for token in tokens if token not in model.end_of_text])


@given(text=st.text("aböß😀漢 \n", min_size=1, max_size=30), cut=st.integers(0, 30))
def test_no_half_character_is_shown_and_nothing_is_lost(tokenizer: Tokenizer, text: str, cut: int) -> None:
    prompt, rest = text[:cut], text[cut:]
    characters = Characters(tokenizer, tokenizer.encode(prompt).ids)
    pieces = [characters.add(token) for token in tokenizer.encode(rest).ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + characters.end() == rest


def test_half_a_character_at_the_end_is_shown_as_such(tokenizer: Tokenizer) -> None:
    characters = Characters(tokenizer, [])
    first_bytes = tokenizer.encode("漢").ids[:-1]
    assert first_bytes
    assert [characters.add(token) for token in first_bytes] == [""] * len(first_bytes)
    assert set(characters.end()) == {"\ufffd"}


def test_words_keep_the_space_before_them() -> None:
    """As Llama 2's does: decoded by itself, the first new token would be glued to the prompt."""
    words = Tokenizer(models.WordLevel({"▁Once": 0, "▁upon": 1, "▁a": 2}, "▁a"))
    words.normalizer = normalizers.Prepend(" ")
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    assert words.decode([1]) == "upon"
    characters = Characters(words, [0])
    assert [characters.add(1), characters.add(2)] == [" upon", " a"]


STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


@settings(max_examples=150, deadline=None)
@given(text=st.text("ab\n", max_size=20), stops=STOPS, cuts=st.sets(st.integers(0, 20)))
def test_a_stop_string_is_found_in_whatever_pieces_it_comes(text: str, stops: list[str], cuts: set[int]) -> None:
    scanner = StopStrings(stops)
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    shown = [scanner.add(text[a:b]) for a, b in pairwise(bounds)]
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    wanted = text[: sum(min(ends))] if ends else text
    assert scanner.found == bool(ends)
    assert "".join(shown) + scanner.end() == wanted
    if not stops:
        assert "".join(shown) == text


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(BigtrainError, match="stop string is empty"):
        StopStrings(["a", ""])


def test_a_prompt_that_is_too_long_is_refused_before_any_text_is_made(model: TextModel) -> None:
    shown: list[str] = []
    with pytest.raises(BigtrainError, match="prompt 3 of 3"):
        model.continue_texts(
            ["a", "b", "number 1" * 40], max_new_tokens=3, sampling=Sampling(), batch_size=1,
            show=lambda number, text, ended: shown.append(text),
        )  # fmt: skip
    assert not shown


def test_texts_come_onto_the_terminal_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    display = InTurn(["one", "two", "three"])
    for number, text, ended in [(1, " b", None), (0, " a", None), (2, " c", "stop"), (0, "!", None)]:
        display.show(number, text, ended)
    assert capsys.readouterr().out == "one a!"
    display.show(0, "", "length")
    assert capsys.readouterr().out == "\n----\ntwo b"
    display.show(1, "?", "end_of_text")
    assert capsys.readouterr().out == "?\n----\nthree c\n"


def test_prompts_come_from_the_command_line_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("one\n two \n\nlast\n")
    assert read_prompts(["zero"], tmp_path / "prompts") == ["zero", "one", " two ", "", "last"]
    with pytest.raises(BigtrainError, match="no prompts can be read"):
        read_prompts([], tmp_path / "nothing")

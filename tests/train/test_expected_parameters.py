"""model.expect_parameters is right in the digits given, or nothing starts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.model import count_parameters
from bigtrain.train.expected_parameters import believed, check_expected_parameters, parameters_by_part

GPT2 = {
    "family": "gpt2",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 50257,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
"""124,439,808 parameters, as Hugging Face counts them."""


@pytest.mark.parametrize(
    ("expected", "low", "high"),
    [
        (124, 124, 125),
        ("124", 124, 125),
        ("124M", 123_500_000, 124_500_000),
        ("124m", 123_500_000, 124_500_000),
        ("124.4M", 124_350_000, 124_450_000),
        ("1.24B", 1_235_000_000, 1_245_000_000),
        ("8B", 7_500_000_000, 8_500_000_000),
        ("1T", 500_000_000_000, 1_500_000_000_000),
        ("124439.808K", 124_439_808, 124_439_809),
        ("1.5", 1, 2),
    ],
)
def test_an_expectation_stands_for_what_rounds_to_it(expected: str | int, low: int, high: int) -> None:
    assert believed(expected) == (low, high)


@given(count=st.integers(1, 10**13), digits=st.integers(0, 9), unit=st.sampled_from("KMBT"))
def test_a_count_rounded_to_any_number_of_digits_is_believed(count: int, digits: int, unit: str) -> None:
    size = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[unit]
    low, high = believed(f"{count / size:.{digits}f}{unit}")
    assert low - 1 <= count <= high  # a half may be rounded to either side


@pytest.mark.parametrize("expected", [124_439_808, "124M", "124.4M", "0.12B"])
def test_the_right_count_passes(expected: str | int) -> None:
    check_expected_parameters(ModelSettings(**GPT2, expect_parameters=expected))


@pytest.mark.parametrize(
    ("expected", "proposed"), [(124_439_809, "124439808"), ("125M", "124M"), ("124.5M", "124.4M"), ("1B", "124439808")]
)
def test_another_count_is_refused_with_the_real_one_and_its_parts(expected: str | int, proposed: str) -> None:
    """Another count is refused with the real one its parts and the right text."""
    with pytest.raises(BigtrainError) as error:
        check_expected_parameters(ModelSettings(**GPT2, expect_parameters=expected))
    message = str(error.value)
    assert "124,439,808" in message and "embedding 39,383,808" in message and "blocks 85,054,464" in message
    assert "head (tied to the embedding) 0" in message
    assert message.endswith(f"model.expect_parameters: {proposed}")


@pytest.mark.parametrize("text", ["", "many", "124Q", "-1M", "1e9", "nan", "M", "1.M"])
def test_what_is_not_a_count_is_refused(text: str) -> None:
    with pytest.raises(BigtrainError, match="such as 124M"):
        believed(text)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_parts_are_all_there_is(family: str, tied: bool) -> None:
    settings = ModelSettings(**{**GPT2, "family": family, "num_hidden_layers": 2, "tie_word_embeddings": tied})
    parts = parameters_by_part(settings)
    assert sum(parts.values()) == count_parameters(settings)
    assert ("head" in parts) is not tied and parts["final norm"] == (768 if family == "llama" else 2 * 768)

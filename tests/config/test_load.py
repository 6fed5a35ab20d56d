"""A good configuration becomes exactly the settings that it says."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from bigtrain.base.errors import BigtrainError
from bigtrain.config import load_settings


def test_what_is_left_out_takes_the_default(good: str, write: Callable[[str], Path]) -> None:
    settings = load_settings(write(good))
    assert settings.run_dir == Path("runs/x")
    assert settings.model.vocab_size == 8192
    assert settings.optimizer.betas == (0.9, 0.95)
    assert settings.evaluate.max_sequences == 256
    assert settings.data.sources[0].exact_weight == Fraction(3, 4)


@pytest.mark.parametrize(
    ("typed", "value"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), ("1.5e+3", 1500.0), ("2", 2.0), ("0.1", 0.1), (".5", 0.5), ("1_000.5", 1000.5)],
)
def test_numbers_are_read_as_yaml_1_2_has_them(
    good: str, write: Callable[[str], Path], typed: str, value: float
) -> None:
    settings = load_settings(write(good + f"optimizer:\n  learning_rate: {typed}\n"))
    assert settings.optimizer.learning_rate == value
    assert load_settings(write(good), [f"optimizer.learning_rate={typed}"]) == settings


@pytest.mark.parametrize(("typed", "value"), [("20_000", 20_000), ("0010", 10), ("+7", 7)])
def test_whole_numbers_are_decimal_and_may_have_underscores(
    good: str, write: Callable[[str], Path], typed: str, value: int
) -> None:
    assert load_settings(write(good.replace("steps: 10", f"steps: {typed}"))).train.steps == value


@pytest.mark.parametrize("word", ["no", "on", "2024-11-01", "1:30", "0x1f", "=", "<<", "a:b"])
def test_what_yaml_1_1_would_turn_into_something_else_stays_text(
    good: str, write: Callable[[str], Path], word: str
) -> None:
    assert load_settings(write(good + f"tracking:\n  name: {word}\n")).tracking.name == word


def test_paths_stay_as_typed(good: str, write: Callable[[str], Path]) -> None:
    settings = load_settings(write(good), ["run_dir=../elsewhere", "data.dir=/absolute/x"])
    assert (settings.run_dir, settings.data.dir) == (Path("../elsewhere"), Path("/absolute/x"))


def test_a_tilde_is_the_home_directory(
    good: str, write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    path = write(good.replace("runs/x", "~/runs/x"))
    settings = load_settings(path, ["data.dir=~/data", "data.tokenizer.path=~/tokenizer.json"])
    assert settings.run_dir == Path("/home/ada/runs/x")
    assert settings.data.dir == Path("/home/ada/data")
    assert settings.data.tokenizer.path == Path("/home/ada/tokenizer.json")
    assert load_settings(path, ["run_dir=runs/~x"]).run_dir == Path("runs/~x")


def test_an_evaluation_has_the_micro_batch_of_training_by_default(good: str, write: Callable[[str], Path]) -> None:
    assert load_settings(write(good), ["train.micro_batch_size=4"]).validation_batch_size == 4
    assert load_settings(write(good), ["evaluate.micro_batch_size=3"]).validation_batch_size == 3


def test_an_alias_gives_the_same_value_again(good: str, write: Callable[[str], Path]) -> None:
    text = good.replace("vocab_size: 8192", "vocab_size: &vocabulary 512")
    text = text.replace("  sequence_length", "  tokenizer:\n    vocab_size: *vocabulary\n  sequence_length")
    assert load_settings(write(text)).data.tokenizer.vocab_size == 512


def test_free_extras_for_deepspeed_are_taken_as_they_are(good: str, write: Callable[[str], Path]) -> None:
    text = good + "engine:\n  deepspeed:\n    zero_optimization: {reduce_bucket_size: 1e8}\n    other: [1, a, null]\n"
    assert load_settings(write(text)).engine.deepspeed == {
        "zero_optimization": {"reduce_bucket_size": 1e8},
        "other": [1, "a", None],
    }


def test_the_embedding_fits_the_trained_tokenizer(good: str, write: Callable[[str], Path]) -> None:
    """The embedding has the size of the trained tokenizer, padded to a multiple of 64."""
    assert load_settings(write(good.replace("  vocab_size: 8192\n", ""))).model.vocab_size == 8192
    without = good.replace("  vocab_size: 8192\n", "").replace("  dir:", "  tokenizer:\n    vocab_size: 1000\n  dir:")
    assert load_settings(write(without)).model.vocab_size == 1024
    with pytest.raises(BigtrainError, match=r"model\.vocab_size is missing"):  # its size is in a file
        load_settings(write(without.replace("    vocab_size: 1000", "    path: tokenizer.json")))

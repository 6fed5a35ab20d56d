"""checkpoint.allow_change takes keys that change the mathematics, and says what is wrong with any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.config import load_settings


@pytest.mark.parametrize(
    "key", ["train.steps", "train.tokens", "optimizer.groups", "optimizer.groups.0.lr_scale", "engine.deepspeed.x.y"]
)
def test_a_key_that_changes_the_mathematics_is_taken(good: str, write: Callable[[str], Path], key: str) -> None:
    settings = load_settings(write(good), [f"checkpoint.allow_change=[{key}]"])
    assert settings.checkpoint.allow_change == (key,)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("train.step", ["unknown key train.step", "train.steps"]),
        ("steps", ["unknown key steps", "train.steps"]),
        ("lr", ["optimizer.learning_rate"]),
        ("optimizer", ["a section", "config explain optimizer"]),
        ("data.sources.0.weight", ["data plan", "bigtrain data diff"]),
        ("train.micro_batch_size", ["does not change the mathematics", "remove it"]),
        ("model.vocab_size.x", ["unknown key"]),
        ("''", ["unknown key"]),
    ],
)
def test_any_other_key_is_refused_where_it_stands(
    good: str, refusal: Callable[..., str], key: str, words: list[str]
) -> None:
    text = f"{good}checkpoint:\n  allow_change:\n    - train.steps\n    - {key}\n"
    message = refusal(text)
    assert f"c.yaml:{len(text.splitlines())}" in message
    for word in words:
        assert word in message, message

"""What goes with objectives that say in which order tokens see each other; anything else is one message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bigtrain.config import Settings
from tests.system.run_sandbox import small_settings

XLNET = {"family": "xlnet", "num_key_value_heads": None}
REFUSED: dict[str, tuple[str, dict[str, dict[str, Any]], list[str]]] = {
    "a back-end without an order": (
        "prefix", {"engine": {"attn_implementation": "cpp"}}, ["attn_implementation cpp", "auto, flex, sdpa"]
    ),
    "slopes without a future": ("prefix", {"model": {"position_embedding": "alibi"}}, ["alibi", "rope, learned"]),
    "buckets without a future": ("prefix", {"model": {"position_embedding": "t5"}}, ["t5", "rope, learned"]),
    "tokens further ahead": ("prefix", {"model": {"num_nextn_predict_layers": 2}}, ["num_nextn_predict_layers 0", "2"]),
    "an encoder": ("prefix", {"model": {"family": "bert", "num_key_value_heads": None}}, ["architecture decoder"]),
    "a decoder": ("permutation", {}, ["architecture two_stream", "found model.architecture decoder"]),
    "another objective": ("causal", {"model": XLNET}, ["it learns by permutation"]),
    "shared sequences": (
        "permutation", {"model": XLNET, "engine": {"sequence_parallel_size": 2}}, ["two_stream", "use ZeRO alone"]
    ),
    "cut matrices": (
        "permutation", {"model": XLNET, "engine": {"tensor_parallel_size": 2}}, ["two_stream", "use ZeRO alone"]
    ),
    "eight bits": ("permutation", {"model": XLNET, "engine": {"float8": True}}, ["two_stream", "float8 false"]),
    "samples": ("permutation", {"model": XLNET, "evaluate": {"samples": 2}}, ["evaluate.samples 2", "decoder"]),
}  # fmt: skip


def with_objective(name: str, changes: dict[str, dict[str, Any]], folder: Path) -> dict[str, Any]:
    settings = small_settings(folder) | {"objective": {"name": name}}
    return settings | {key: settings.get(key, {}) | change for key, change in changes.items()}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_in_an_order_is_one_message(name: str, tmp_path: Path) -> None:
    objective, changes, words = REFUSED[name]
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate(with_objective(objective, changes, tmp_path))
    assert refused.value.error_count() == 1
    assert all(word in str(refused.value) for word in words), str(refused.value)


@pytest.mark.parametrize(
    ("objective", "model", "backend"),
    [("prefix", {}, "sdpa"), ("prefix", {"position_embedding": "none"}, "auto"), ("permutation", XLNET, "flex")],
)
def test_what_can_be_in_an_order_is_accepted(
    objective: str, model: dict[str, Any], backend: str, tmp_path: Path
) -> None:
    changes = {"model": model, "engine": {"attn_implementation": backend}}
    Settings.model_validate(with_objective(objective, changes, tmp_path))

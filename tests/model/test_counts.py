"""Parameters and FLOPs are exact."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bigtrain.config import load_settings
from bigtrain.config.model_settings import ModelSettings
from bigtrain.model import build_model, count_active_parameters, count_parameters, flops_per_token
from tests.model.helpers import packed_batch, small_settings

PUBLISHED = {
    "gpt2": (
        124_439_808,
        {"family": "gpt2", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
         "intermediate_size": 3072, "vocab_size": 50257, "max_position_embeddings": 1024, "tie_word_embeddings": True},
    ),
    "Llama-3.2-1B": (
        1_235_814_400,
        {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 8192, "vocab_size": 128256, "max_position_embeddings": 131072,
         "tie_word_embeddings": True},
    ),
    "Llama-3-8B": (
        8_030_261_248,
        {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192},
    ),
    "Llama-3-70B": (
        70_553_706_496,
        {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
         "intermediate_size": 28672, "vocab_size": 128256, "max_position_embeddings": 8192},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_is_the_published_one(name: str) -> None:
    published, shape = PUBLISHED[name]
    assert count_parameters(ModelSettings.model_validate(shape)) == published


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_flops_per_token_are_those_that_pytorch_counts(family: str, tied: bool) -> None:
    settings = small_settings(family, tie_word_embeddings=tied)
    model = build_model(settings, attn_implementation="reference")
    model.init_weights(0)
    batch = packed_batch(1, 40, 96, 0) | {"cu_seqlens": torch.tensor([0, 40]), "max_seqlen": 40}
    with FlopCounterMode(display=False) as counter:
        model(**batch).backward()
    assert counter.get_total_flops() == 40 * flops_per_token(settings, 40)


def grouped_flops(x: tuple[int, ...], other: tuple[int, ...], *_: Any, out_shape: tuple[int, ...], **__: Any) -> int:
    """Each of the M rows is multiplied with one matrix of N K elements."""
    return 2 * x[0] * math.prod(other[-2:] if len(other) == 3 else out_shape[-2:])


@pytest.mark.parametrize("changes", [{"num_experts": 4, "moe_intermediate_size": 16, "mlp_only_layers": [1]}, {}])
@pytest.mark.parametrize("ahead", [0, 2])
def test_flops_of_experts_and_of_tokens_further_ahead_too(changes: dict[str, Any], ahead: int) -> None:
    settings = small_settings(num_nextn_predict_layers=ahead, **changes)
    model = build_model(settings, attn_implementation="reference")
    model.init_weights(0)
    batch = packed_batch(1, 40, 96, 0) | {"cu_seqlens": torch.tensor([0, 40]), "max_seqlen": 40}
    ours = torch.ops.bigtrain
    formulas = {ours.grouped_product: grouped_flops, ours.grouped_product_over_rows: grouped_flops}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        model(**batch).backward()
    assert counter.get_total_flops() == 40 * flops_per_token(settings, 40)


@pytest.mark.parametrize(
    ("name", "active"),
    [("mixtral-8x7b", 12_879_925_248), ("qwen3-30b-a3b", 3_353_032_704), ("llama-1b", 1_235_814_400)],
)
def test_active_parameters_are_the_published_ones(name: str, active: int) -> None:
    """12.9B, 3.3B, and all of a model without experts."""
    settings = load_settings(Path(__file__).parents[2] / f"configs/{name}.yaml").model
    assert count_active_parameters(settings) == active
    with_more = settings.model_copy(update={"num_nextn_predict_layers": 1})
    assert count_active_parameters(with_more) == active
    assert count_parameters(with_more) > count_parameters(settings)


def test_causal_flops_count_each_pair_of_tokens_once() -> None:
    settings = small_settings()
    pairs = sum(range(1, 41))
    attention = 12 * settings.num_hidden_layers * settings.hidden_size
    wanted = 40 * (flops_per_token(settings, 40) - attention * 40) + attention * pairs
    assert 40 * flops_per_token(settings, 40, causal=True) == wanted

"""Adapters by their formulas: what they compute, what learns, and what is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bigtrain.base import BigtrainError
from bigtrain.config import AdapterSettings
from bigtrain.model import (
    LanguageModel,
    Merged,
    build_model,
    count_learning_parameters,
    first_magnitude,
    flops_per_token,
    initialize,
    is_of_adapter,
)
from bigtrain.model.cpu.cpu_products import linear
from bigtrain.model.layers.adapted import AdaptedLinear
from bigtrain.model.loss.loss import linear_cross_entropy
from tests.model.helpers import packed_batch, small_settings

METHODS = ("lora", "dora", "bottleneck")


def pair(
    adapter: AdapterSettings, family: str = "llama", *, started: bool = False, **shape: Any
) -> tuple[LanguageModel, LanguageModel]:
    """A base and the same with an adapter, in float64: at its first values, or `started`, with random ones."""
    settings = small_settings(family, **shape)
    base = build_model(settings, attn_implementation="reference").double()
    base.init_weights(3)
    model = build_model(settings, attn_implementation="reference", adapter=adapter).double()
    weights = {name: parameter.detach() for name, parameter in base.named_parameters()}
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
            elif (magnitude := first_magnitude(name, weights, torch.float64)) is not None:
                parameter.copy_(magnitude)
            else:
                initialize(name, parameter, settings, 3)
            if started and is_of_adapter(name):
                parameter.add_(torch.rand(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.3)
    return base, model


def adapter_of(method: Any, **values: Any) -> AdapterSettings:
    shape = {"bottleneck_size": 5} if method == "bottleneck" else {"r": 3, "lora_alpha": 5.0}
    return AdapterSettings(method=method, **({"target_modules": ("*_proj",)} | shape | values))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_starts_as_its_base_and_alone_learns(method: Any, family: str) -> None:
    base, model = pair(adapter_of(method), family)
    inputs = {"encoder_input_ids": torch.arange(5, 25)[None]} if family == "t5" else {}
    ids = torch.arange(20)[None]
    torch.testing.assert_close(model.logits(ids, **inputs), base.logits(ids, **inputs), rtol=1e-12, atol=1e-12)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if is_of_adapter(name)}
    model.logits(ids, **inputs).square().sum().backward()
    assert all((parameter.grad is not None) == (name in learning) for name, parameter in model.named_parameters())


@given(method=st.sampled_from(METHODS), bias=st.booleans(), use_rslora=st.booleans(), seed=st.integers(0, 99))
def test_each_layer_computes_its_formula(method: Any, bias: bool, use_rslora: bool, seed: int) -> None:
    """In float64, written as in the papers."""
    rank = {} if method == "bottleneck" else {"use_rslora": use_rslora}
    adapter = adapter_of(method, **rank)
    _, model = pair(adapter, started=True, attention_bias=bias)
    layer = model.get_submodule("layers.1.self_attn.k_proj")
    assert isinstance(layer, AdaptedLinear)
    x = torch.randn(2, 7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    own: dict[str, Tensor] = dict(layer.named_parameters())
    weight, shift = own["weight"], own.get("bias", torch.zeros(16, dtype=torch.float64))
    if method == "bottleneck":
        plain = x @ weight.T + shift
        inner = torch.nn.functional.gelu(plain @ own["bottleneck_down"].T + own["bottleneck_down_bias"])
        wanted = plain + inner @ own["bottleneck_up"].T + own["bottleneck_up_bias"]
    else:
        changed = weight + 5.0 / (3**0.5 if use_rslora else 3) * own["lora_B"] @ own["lora_A"]
        if method == "dora":
            changed = own["lora_magnitude_vector"][:, None] * changed / changed.norm(dim=1, keepdim=True)
        wanted = x @ changed.T + shift
    torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_merged_weights_give_the_same_logits(method: Any) -> None:
    adapter = adapter_of(method, modules_to_save=("lm_head",))
    base, model = pair(adapter, started=True)
    merged = Merged({name: parameter.detach() for name, parameter in model.named_parameters()}, adapter)
    assert set(merged) == {name for name, _ in base.named_parameters()} and len(merged) == len(set(merged))
    ids, before = torch.arange(20)[None], base.logits(torch.arange(20)[None])
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            assert name in merged and parameter.copy_(merged[name]) is parameter
    torch.testing.assert_close(base.logits(ids), model.logits(ids), rtol=1e-12, atol=1e-12)
    assert (base.logits(ids) - before).abs().max() > 0.01


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_dropout_of_an_adapter_follows_from_the_rows_keys(method: Any) -> None:
    """The same keys drop the same, others drop otherwise, and evaluation drops nothing."""
    _, model = pair(adapter_of(method, lora_dropout=0.3), started=True)
    inputs = packed_batch(2, 16, 96, seed=1)
    keys = torch.tensor([5, 6])
    losses = [model(**inputs, row_keys=each).item() for each in (keys, keys, keys + 2)]
    assert losses[0] == losses[1] != losses[2]
    swapped = {
        name: value.flip(0) if name in ("input_ids", "labels", "position_ids") else value
        for name, value in packed_batch(2, 16, 96, seed=1).items()
    }
    rows = torch.tensor([0, 16, 32], dtype=torch.int32)
    by_rows = [{**each, "cu_seqlens": rows, "max_seqlen": 16} for each in (inputs, swapped)]
    there, back = (model(**each, row_keys=k).item() for each, k in zip(by_rows, (keys, keys.flip(0)), strict=True))
    assert there == pytest.approx(back, rel=1e-12)
    with pytest.raises(ValueError, match="rows that have keys"):
        model(**inputs)
    model.eval()
    assert model(**inputs).item() not in losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_matrix_has_no_gradient_and_changes_no_other(dtype: torch.dtype) -> None:
    """What flows to the input through a frozen layer and a frozen head is the same to the last bit."""
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(24, 16, generator=generator).to(dtype) for _ in range(2))
    labels = torch.arange(24) % 16
    for function in (
        lambda x, w: linear(x, w).float().square().sum(),
        lambda x, w: linear_cross_entropy(x, w, labels),
    ):
        found = []
        for learns in (True, False):
            own, matrix = x.clone().requires_grad_(), weight.clone().requires_grad_(learns)
            function(own, matrix).backward()
            assert (matrix.grad is not None) == learns
            found.append(own.grad)
        assert torch.equal(*found)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_modules": ("*.q_prj",)}, "adapter.target_modules matches nothing"),
        ({"target_modules": ("lm_head",)}, "adapter.target_modules matches nothing"),
        ({"modules_to_save": ("layers.9.*",)}, "adapter.modules_to_save matches nothing"),
        ({"modules_to_save": ("*.mlp",)}, "holds a layer that has an adapter, too"),
        ({"r": 17}, "adapter.r is larger than a side of the matrix"),
    ],
)
def test_an_adapter_that_does_not_fit_the_model_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BigtrainError, match=message):
        build_model(small_settings(), adapter=adapter_of("lora", **values))


def test_modules_to_save_learn_as_a_whole() -> None:
    adapter = AdapterSettings(method="lora", modules_to_save=("lm_head", "layers.0.*norm"))
    model = build_model(small_settings(tie_word_embeddings=True), adapter=adapter)
    whole = {n for n, parameter in model.named_parameters() if parameter.requires_grad and not is_of_adapter(n)}
    norms = {"layers.0.input_layernorm.weight", "layers.0.post_attention_layernorm.weight"}
    assert whole == {"embed_tokens.weight"} | norms  # a tied head is the embedding


def test_frozen_weights_count_two_thirds_of_the_operations() -> None:
    """Without attention and head the count of an adapter's run is 4 for each frozen weight and 6 for each other."""
    settings, adapter = small_settings(), adapter_of("lora")
    plain = flops_per_token(settings, 16)
    attention = 12 * 2 * 32 * 16
    learning = count_learning_parameters(settings, adapter)
    wanted = (plain - attention) * 2 / 3 + 6 * learning + attention
    assert flops_per_token(settings, 16, adapter=adapter) == pytest.approx(wanted, rel=1e-12)
    assert learning == sum(3 * (n + k) for n, k in [(32, 32), (16, 32), (16, 32), (32, 32)] + [(48, 32)] * 3) * 2

"""Every choice of a model, alone and together, keeps what packing promises."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.config.families import FAMILIES
from bigtrain.config.model_settings import ModelSettings
from bigtrain.model import Decoder, build_model
from bigtrain.model.initial_weights import initialize
from tests.model.helpers import packed_batch, relative_error, small_settings

CHOICES: dict[str, st.SearchStrategy[Any]] = {
    "norm": st.sampled_from(["rms_norm", "rms_norm_zero_centered", "layer_norm"]),
    "norm_position": st.sampled_from(["pre", "post", "sandwich"]),
    "parallel_residual": st.booleans(),
    "position_embedding": st.sampled_from(["rope", "learned", "sinusoidal", "alibi", "t5", "none"]),
    "partial_rotary_factor": st.sampled_from([0.25, 0.5, 1.0]),
    "sliding_window": st.sampled_from([None, 5]),
    "attention_bias": st.booleans(),
    "attention_output_bias": st.booleans(),
    "qk_norm": st.sampled_from(["none", "head", "full"]),
    "attention_multiplier": st.sampled_from([None, 0.3]),
    "attn_logit_softcapping": st.sampled_from([None, 2.0]),
    "hidden_act": st.sampled_from(["silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2"]),
    "gated_mlp": st.booleans(),
    "mlp_bias": st.booleans(),
    "embedding_multiplier": st.sampled_from([1.0, 3.0, "sqrt_hidden_size"]),
    "residual_multiplier": st.sampled_from([1.0, 0.5]),
    "logits_scaling": st.sampled_from([1.0, 4.0]),
    "final_logit_softcapping": st.sampled_from([None, 1.0]),
    "mup_base_hidden_size": st.sampled_from([None, 8]),
    "z_loss_coef": st.sampled_from([0.0, 1e-2]),
    "label_smoothing": st.sampled_from([0.0, 0.1]),
    "norm_bias": st.booleans(),
    "embedding_norm": st.booleans(),
    "type_vocab_size": st.sampled_from([0, 2]),
    "head_transform": st.booleans(),
    "head_transform_bias": st.booleans(),
    "head_bias": st.booleans(),
}
ENCODER_CHOICES = CHOICES | {
    "architecture": st.just("encoder"),
    "num_hidden_groups": st.sampled_from([None, 1]),
    "norm_position": st.sampled_from(["pre", "post", "sandwich", "post_residual"]),
    "parallel_residual": st.just(False),
    "position_embedding": st.sampled_from(["rope", "learned", "sinusoidal", "none"]),
    "sliding_window": st.sampled_from([None, 5, 8]),
}
WITH_BLOCKS = [name for name, chosen in FAMILIES.items() if "recurrent" not in chosen.get("architecture", "")]
any_choices = st.fixed_dictionaries(CHOICES) | st.fixed_dictionaries(ENCODER_CHOICES)


def decoder(choices: dict[str, Any], dtype: torch.dtype = torch.float64, **how: Any) -> Decoder:
    model = build_model(small_settings(**choices), **how).to(dtype)
    model.init_weights(seed=3)
    with torch.no_grad():
        for parameter in model.parameters():  # vectors too: a bias of zero hides what it does
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to(dtype))
    return model


def gradients(model: Decoder, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@settings(max_examples=25, deadline=None)
@given(choices=any_choices, seed=st.integers(0, 100))
def test_any_choices_together_see_a_packed_batch_as_its_documents(choices: dict[str, Any], seed: int) -> None:
    model, batch = decoder(choices, attn_implementation="reference"), packed_batch(2, 24, 96, seed)
    together = model(**batch)
    packed = gradients(model, together)
    ids, labels, bounds = batch["input_ids"].flatten(), batch["labels"].flatten(), batch["cu_seqlens"].tolist()
    alone = sum(
        model(
            ids[None, a:b],
            labels[None, a:b],
            torch.arange(b - a)[None],
            torch.tensor([0, b - a], dtype=torch.int32),
            b - a,
        )
        for a, b in pairwise(bounds)
    )
    assert isinstance(alone, torch.Tensor)
    assert together.item() == pytest.approx(alone.item(), rel=1e-10)
    assert relative_error(packed, gradients(model, alone)) < 1e-9


@settings(max_examples=20, deadline=None)
@given(choices=any_choices, seed=st.integers(0, 100))
def test_any_choices_together_compute_what_the_reference_attention_does(choices: dict[str, Any], seed: int) -> None:
    batch = packed_batch(2, 24, 96, seed)
    ours, reference = decoder(choices), decoder(choices, attn_implementation="reference")
    assert relative_error(gradients(ours, ours(**batch)), gradients(reference, reference(**batch))) < 1e-9


@pytest.mark.parametrize("family", WITH_BLOCKS)
def test_a_family_is_its_choices(family: str) -> None:
    settings = ModelSettings(**shape(family))
    spelled_out = ModelSettings(**shape("llama") | dict(FAMILIES[family]))
    assert settings.model_dump(exclude={"family"}) == spelled_out.model_dump(exclude={"family"})
    overruled = ModelSettings(**shape(family), hidden_act="relu", norm_eps=0.5)
    assert (overruled.hidden_act, overruled.norm_eps) == ("relu", 0.5)


def test_mup_scales_initial_weights_rates_and_logits_by_width() -> None:
    narrow, wide = small_settings(), small_settings(hidden_size=128, intermediate_size=192, mup_base_hidden_size=32)
    assert wide.width_multiplier == 4
    name = "layers.0.mlp.up_proj.weight"
    spread = torch.empty(192, 128)
    initialize(name, spread, wide, seed=0)
    assert float(spread.std()) == pytest.approx(narrow.initializer_range / 2, rel=0.05)
    scales = build_model(wide).lr_scales()
    assert scales[name] == 0.25
    assert not {"embed_tokens.weight", "lm_head.weight", "layers.0.input_layernorm.weight"} & scales.keys()
    assert build_model(narrow).lr_scales() == {}
    assert build_model(wide).lm_head.scaling == 4


def shape(family: str) -> dict[str, Any]:
    return {
        "family": family, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
        "vocab_size": 96, "max_position_embeddings": 64,
    }  # fmt: skip

"""Layer-wise learning rates: each block has a lower one than the block after it, and embeddings the lowest."""

from __future__ import annotations

import pytest

from bigtrain.config.settings import OptimizerSettings
from bigtrain.engine.optimizer import parameter_groups
from bigtrain.model import build_model
from tests.model.helpers import small_settings

DECAY = 0.5
RATES = {
    "llama": {
        "embed_tokens.weight": 3, "layers.0.self_attn.q_proj.weight": 2, "layers.1.mlp.up_proj.weight": 1,
        "norm.weight": 0, "lm_head.weight": 0,
    },
    "bert": {
        "embed_positions.weight": 3, "embed_norm.bias": 3, "layers.0.mlp.up_proj.bias": 2, "lm_head.dense.weight": 0,
    },
    "albert": {"embed_projection.weight": 2, "layers.0.mlp.up_proj.bias": 1, "lm_head.norm.weight": 0},
    "t5": {
        "embed_tokens.weight": 6, "encoder.relative_attention_bias.weight": 6,
        "encoder.layers.0.mlp.up_proj.weight": 5, "encoder.layers.1.input_layernorm.weight": 4,
        "encoder.norm.weight": 4, "layers.0.cross_attn.q_proj.weight": 3, "layers.2.mlp.up_proj.weight": 1,
        "norm.weight": 0,
    },
    "xlnet": {"mask_embedding.weight": 3, "layers.1.self_attn.segments": 1},
    "luong": {
        "embed_tokens.weight": 6, "encoder.layers.1.ahead.input_gates.weight": 4, "start.weight": 4,
        "layers.0.input_gates.weight": 3, "readout.weight": 0, "lm_head.weight": 0,
    },
}  # fmt: skip
"""How often the rate is multiplied."""
CHANGES = {
    "t5": {"num_decoder_layers": 3, "tie_word_embeddings": True},
    "albert": {"embedding_size": 16},
    "luong": {"num_decoder_layers": 3, "num_attention_heads": 0, "intermediate_size": 0},
}


@pytest.mark.parametrize("family", RATES)
def test_a_rate_falls_with_every_block_to_the_head(family: str) -> None:
    model = build_model(small_settings(family, **CHANGES.get(family, {})))
    scales = model.lr_scales(DECAY)
    names = {name for name, _ in model.named_parameters()}
    assert RATES[family].keys() <= names
    for name, blocks in RATES[family].items():
        assert scales.get(name, 1.0) == DECAY**blocks, name
    embeddings = [scales[name] for name in names if name.startswith("embed")]
    assert set(embeddings) == {min(scales.values())}


def test_without_a_decay_no_rate_is_another_one() -> None:
    assert build_model(small_settings("bert")).lr_scales() == {}


def test_mup_and_the_decay_multiply() -> None:
    model = build_model(small_settings("llama", mup_base_hidden_size=8))
    scales = model.lr_scales(DECAY)
    assert scales["layers.0.mlp.up_proj.weight"] == DECAY**2 / 4
    assert scales["layers.0.input_layernorm.weight"] == DECAY**2
    assert model.lr_scales()["layers.0.mlp.up_proj.weight"] == 1 / 4


@pytest.mark.parametrize("name", ["adamw", "muon", "lion"])
def test_groups_of_the_optimizer_have_the_rates_of_their_parameters(name: str) -> None:
    """Each parameter is in one group; a group of optimizer.groups multiplies its own scale."""
    model = build_model(small_settings("bert"))
    chosen = {"name": name, "layer_lr_decay": DECAY, "groups": [{"match": "lm_head.*", "lr_scale": 10.0}]}
    groups = parameter_groups(model, OptimizerSettings.model_validate(chosen))
    found = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    scales = model.lr_scales(DECAY)
    assert len(found) == sum(len(group["params"]) for group in groups)
    for each, parameter in model.named_parameters():
        assert found[id(parameter)] == (10.0 if each.startswith("lm_head.") else scales[each]), each


@pytest.mark.parametrize("decay", [0.0, 1.1])
def test_a_decay_that_is_no_share_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="layer_lr_decay"):
        OptimizerSettings.model_validate({"layer_lr_decay": decay})

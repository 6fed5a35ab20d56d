"""Shapes that follow from the settings are those of the model that PyTorch builds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from bigtrain.base import BigtrainError
from bigtrain.config import AdapterSettings, ModelSettings, load_settings
from bigtrain.config.families import FAMILIES
from bigtrain.model import LanguageModel, build_model, model_shapes
from bigtrain.model.tensor_parallel import TENSOR_PARALLEL_PLAN

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def shape_of(family: str, **changes: Any) -> ModelSettings:
    """A small model of a family, with keys of blocks only where it has these."""
    recurrent = FAMILIES[family].get("position_embedding") == "none"
    shape: dict[str, Any] = {"family": family, "hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 96}
    blocks = {"num_attention_heads": 4, "intermediate_size": 48}
    return ModelSettings.model_validate(
        shape | {"max_position_embeddings": 64} | ({} if recurrent else blocks) | changes
    )


def built(settings: ModelSettings, adapter: AdapterSettings | None = None) -> LanguageModel:
    with torch.device("meta"):
        return build_model(settings, adapter=adapter)


def assert_equal_to_the_model(settings: ModelSettings, adapter: AdapterSettings | None = None) -> None:
    """Names, order, shapes, and what learns."""
    model = built(settings, adapter)
    real = [(name, tuple(each.shape), each.requires_grad) for name, each in model.named_parameters()]
    assert [(each.name, each.shape, each.learns) for each in model_shapes(settings, adapter).parameters] == real


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parameters_of_a_family_are_those_of_its_model(family: str) -> None:
    assert_equal_to_the_model(shape_of(family))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_parameters_of_a_configuration_are_those_of_its_model(config: Path) -> None:
    settings = load_settings(config)
    assert_equal_to_the_model(settings.model, settings.adapter)


TASKS: tuple[dict[str, Any], ...] = (
    {"task_head": "sequence_classification", "num_labels": 3},
    {"task_head": "token_classification", "num_labels": 3},
    {"task_head": "question_answering"},
)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task["task_head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_parameters_of_a_task_head_are_those_of_its_model(family: str, task: dict[str, Any]) -> None:
    assert_equal_to_the_model(shape_of(family, **task))


ADAPTERS = (
    {"method": "lora", "r": 3},
    {"method": "lora", "r": 3, "target_modules": ("*layers.0.*",), "modules_to_save": ("lm_head",)},
    {"method": "dora", "r": 2, "modules_to_save": ("embed_*",)},
    {"method": "bottleneck", "bottleneck_size": 5},
    {"method": "prefix_tuning", "num_virtual_tokens": 3},
    {"method": "prompt_tuning", "num_virtual_tokens": 3},
)


@pytest.mark.parametrize("values", ADAPTERS, ids=lambda values: "-".join(map(str, values.values()))[:40])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_parameters_of_an_adapter_are_those_of_its_model(family: str, values: dict[str, Any]) -> None:
    settings = shape_of(family)
    if settings.recurrent and "virtual" in str(values):
        pytest.skip("a recurrent model has no virtual tokens")
    if "virtual" not in str(values):
        values = {"target_modules": ("*_gates",) if settings.recurrent else ("*_proj",)} | values
    assert_equal_to_the_model(settings, AdapterSettings.model_validate(values))


def test_a_pattern_that_matches_no_layer_is_refused() -> None:
    """Where a model is built, and where only its shapes are asked for."""
    for values, what in (({"target_modules": ("*.none",)}, "matches nothing"), ({"r": 40}, "larger than a side")):
        adapter = AdapterSettings.model_validate({"method": "lora", **values})
        for use in (built, model_shapes):
            with pytest.raises(BigtrainError, match=what):
                use(shape_of("llama"), adapter)


def choices() -> Iterator[tuple[str, st.SearchStrategy[Any]]]:
    """Values for nearly every key that changes a shape; contradictions among them are drawn again."""
    yield "hidden_size", st.sampled_from([8, 12, 16, 24])
    yield "num_hidden_layers", st.integers(1, 4)
    yield "num_decoder_layers", st.integers(1, 3)
    yield "num_attention_heads", st.sampled_from([1, 2, 4])
    yield "num_key_value_heads", st.sampled_from([1, 2])
    yield "head_dim", st.sampled_from([4, 8])
    yield "intermediate_size", st.integers(1, 40)
    yield "vocab_size", st.integers(1, 200)
    yield "norm", st.sampled_from(["rms_norm", "rms_norm_zero_centered", "layer_norm"])
    yield "norm_position", st.sampled_from(["pre", "post", "sandwich", "post_residual"])
    yield "position_embedding", st.sampled_from(["rope", "learned", "sinusoidal", "alibi", "t5", "none"])
    yield "position_offset", st.integers(0, 2)
    yield "qk_norm", st.sampled_from(["none", "head", "full"])
    yield "num_experts", st.sampled_from([0, 3])
    yield "mlp_only_layers", st.sampled_from([(), (0,)])
    yield "moe_intermediate_size", st.integers(1, 9)
    yield "embedding_size", st.sampled_from([4, 8])
    yield "type_vocab_size", st.integers(0, 2)
    yield "num_hidden_groups", st.sampled_from([1, 2])
    yield "num_nextn_predict_layers", st.integers(0, 2)
    yield "task_head", st.sampled_from(["none", "sequence_classification", "token_classification"])
    yield "num_labels", st.sampled_from([2, 3])
    yield "classifier_transform", st.sampled_from(["none", "pooler", "tanh", "norm"])
    yield "cell", st.sampled_from(["lstm", "gru"])
    yield "attention_score", st.sampled_from(["additive", "dot"])
    yield "character_filters", st.sampled_from([(), (3, 5), (4,)])
    yield "highway_layers", st.integers(0, 2)
    for key in (
        "tie_word_embeddings", "norm_bias", "first_attention_norm", "parallel_residual", "attention_bias",
        "attention_output_bias", "gated_mlp", "mlp_bias", "embedding_norm", "head_transform", "head_transform_bias",
        "head_bias", "sentence_head",
    ):  # fmt: skip
        yield key, st.booleans()


@st.composite
def model_settings(draw: st.DrawFn) -> ModelSettings:
    """A family with a few of its choices changed."""
    family, of_keys = draw(st.sampled_from(sorted(FAMILIES))), dict(choices())
    keys = draw(st.lists(st.sampled_from(sorted(of_keys)), max_size=5, unique=True))
    try:
        return shape_of(family, **{key: draw(of_keys[key]) for key in keys})
    except ValidationError:
        assume(False)
        raise


@given(model_settings())
def test_the_parameters_of_any_settings_are_those_of_their_model(settings: ModelSettings) -> None:
    assert_equal_to_the_model(settings)


@given(model_settings())
def test_blocks_and_ends_hold_every_parameter(settings: ModelSettings) -> None:
    """Each parameter is in one block or outside of all; a block that several layers share stands for each."""
    shapes = model_shapes(settings)
    blocks = dict(zip(shapes.block_names, shapes.blocks, strict=True))
    named = [f"{name}.{each.name}" for name, block in blocks.items() for each in block.parameters]
    named += [each.name for each in shapes.ends]
    assert sorted(named) == sorted(each.name for each in shapes.parameters)
    layers = settings.num_hidden_layers + settings.num_nextn_predict_layers
    assert len(shapes.blocks) == layers + (settings.decoder_layers if settings.reads_pairs else 0)


def test_tensor_parallelism_divides_what_its_plan_names() -> None:
    """The dimension of each matrix in the plan of DeepSpeed, and no other parameter of a dense decoder."""
    settings = shape_of("llama", attention_bias=True, mlp_bias=True, attention_output_bias=True)
    kinds = {path.rpartition(".")[2]: kind for path, kind in TENSOR_PARALLEL_PLAN.items()}
    for each in model_shapes(settings).parameters:
        module, _, part = each.name.rpartition(".")
        kind = kinds.get(module.rpartition(".")[2])
        rowwise = 1 if part == "weight" else None
        assert each.split == {"colwise": 0, "rowwise": rowwise, None: None}[kind], each.name


def test_a_linear_layer_is_one_of_pytorch() -> None:
    """What an adapter can take the place of: the parameters of nn.Linear, and no others."""
    for family in FAMILIES:
        model = built(shape_of(family))
        linear = {
            f"{name}.{part}"
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
            for part, _ in module.named_parameters()
        }
        assert linear == {each.name for each in model_shapes(model.settings).parameters if each.linear}


def test_equal_blocks_are_one_object() -> None:
    """So that a planner computes once for each kind of block, however many layers there are."""
    shapes = model_shapes(shape_of("gemma2", num_hidden_layers=10))
    assert len({id(block) for block in shapes.blocks}) == 2
    assert [each.window for block in shapes.blocks[:2] for each in block.attentions] == [4096, None]
    assert math.prod(shapes.blocks[0].products[0].shape) == 32 * 32

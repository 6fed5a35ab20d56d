"""Models of every family in varied shapes, and a tokenizer to go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bigtrain.config.families import FAMILIES
from bigtrain.config.model_settings import ModelSettings
from bigtrain.convert import export_hf
from bigtrain.model import Decoder, build_model

END = "<|endoftext|>"
PADDING = [f"<|padding {number}|>" for number in range(1, 4)]
"""Tokens 1 to 3."""
VOCABULARY, CONTEXT = 320, 48
WITH_BIAS_SWITCH = {"llama", "qwen3", "olmo2", "gemma", "gemma2", "granite", "qwen3_moe", "gpt_neox"}
WITH_MLP_BIAS_SWITCH = {"llama", "granite"}
ENCODERS = {name for name, choices in FAMILIES.items() if choices.get("architecture") == "encoder"}
OF_BOTH = {name for name, choices in FAMILIES.items() if choices.get("architecture") == "encoder_decoder"}
T5 = {"t5", "t5_v1_1"}
TWO_STREAMS = {"xlnet"}
WHOLE_HEADS = {"gpt2", "gpt_neox"} | ENCODERS | OF_BOTH - T5 | TWO_STREAMS
"""hidden_size is num_attention_heads times head_dim, and each head has keys of its own."""
OF_BART = OF_BOTH - T5
TIED = {"bert", "roberta", "albert"} | OF_BART | TWO_STREAMS
MIXTURES = {name for name, choices in FAMILIES.items() if choices.get("num_experts")}

scalings = st.one_of(
    st.none(),
    st.fixed_dictionaries({"rope_type": st.sampled_from(["linear", "ntk"]), "factor": st.sampled_from([1.5, 4.0])}),
    st.fixed_dictionaries(
        {"rope_type": st.just("yarn"), "factor": st.sampled_from([2.0, 4.0])},
        optional={
            "beta_fast": st.sampled_from([4.0, 16.0]),
            "attention_factor": st.just(0.9),
            "original_max_position_embeddings": st.sampled_from([16, 40]),
        },
    ),
    st.fixed_dictionaries(
        {"rope_type": st.just("llama3"), "factor": st.just(8.0), "original_max_position_embeddings": st.just(32)},
        optional={"low_freq_factor": st.just(2.0), "high_freq_factor": st.just(8.0)},
    ),
)


def settings_of(family: str, **values: Any) -> ModelSettings:
    common = {
        "family": family, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
        "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "initializer_range": 0.2,
    }  # fmt: skip
    if family in MIXTURES:
        common |= {"num_experts": 4, "num_experts_per_tok": 2}
    return ModelSettings.model_validate(common | values)


@st.composite
def shapes(draw: st.DrawFn, family: str) -> ModelSettings:
    """Everything that a family can have, mixed."""
    heads = draw(st.sampled_from([2, 4]))
    values: dict[str, Any] = {
        "num_attention_heads": heads,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "intermediate_size": draw(st.sampled_from([24, 56])),
        "tie_word_embeddings": family in TIED or draw(st.booleans()),
        "norm_eps": draw(st.sampled_from([1e-6, 1e-3])),
        "hidden_act": draw(st.sampled_from(["silu", "gelu_pytorch_tanh", "relu2"])),
    }
    if family in WHOLE_HEADS:
        values["hidden_size"] = heads * draw(st.sampled_from([8, 16]))
    elif family in T5:
        tied = values["tie_word_embeddings"]
        values |= {
            "head_dim": draw(st.sampled_from([6, 16, None])),
            "logits_scaling": "sqrt_hidden_size" if tied else 1.0,
            "gated_mlp": draw(st.booleans()),
            "relative_attention_num_buckets": draw(st.sampled_from([8, 32])),
            "relative_attention_max_distance": draw(st.sampled_from([20, 128])),
        }
    else:
        values["num_key_value_heads"] = draw(st.sampled_from([1, 2, heads]))
        values["head_dim"] = draw(st.sampled_from([6, 16, None]))
    if family in OF_BOTH:
        values["num_decoder_layers"] = draw(st.sampled_from([None, 1, 3]))
    if family not in {"gpt2"} | ENCODERS | OF_BOTH | TWO_STREAMS:
        values |= {"rope_theta": draw(st.sampled_from([10000.0, 500000.0])), "rope_scaling": draw(scalings)}
    if family in WITH_BIAS_SWITCH:
        biased = draw(st.booleans())
        values |= {"attention_bias": biased, "attention_output_bias": biased}
    if family in WITH_MLP_BIAS_SWITCH:
        values["mlp_bias"] = draw(st.booleans())
    if family == "gpt_neox":
        values |= {
            "parallel_residual": draw(st.booleans()),
            "partial_rotary_factor": draw(st.sampled_from([0.25, 0.5, 1.0])),
        }
    if family in {"mistral", "mixtral", "qwen3_moe", "qwen2", "qwen3", "gemma2"}:
        values |= {"sliding_window": draw(st.sampled_from([None, 1, 7])), "layer_types": ()}
    if family in {"qwen2", "qwen3", "gemma2"} and values["sliding_window"]:
        kinds = st.sampled_from(["sliding_attention", "full_attention"])
        layers = values["num_hidden_layers"]
        values["layer_types"] = tuple(draw(st.lists(kinds, min_size=layers, max_size=layers)))
    if family in OF_BART:
        values["embedding_multiplier"] = draw(st.sampled_from([1.0, "sqrt_hidden_size"]))
        del values["norm_eps"]  # it has no key in config.json
    elif family in TIED - TWO_STREAMS:
        values |= {"type_vocab_size": draw(st.integers(1, 3))}
    if family == "roberta":
        values |= {"position_offset": draw(st.integers(2, 4))}
    if family == "albert":
        values |= {"embedding_size": draw(st.sampled_from([12, values["hidden_size"]]))}
        values |= {"num_hidden_groups": draw(st.sampled_from([1, values["num_hidden_layers"]]))}
    if family == "modernbert":
        layers, biased = values["num_hidden_layers"], draw(st.booleans())
        kinds = st.sampled_from(["sliding_attention", "full_attention"])
        values |= {
            "rope_theta": draw(st.sampled_from([10000.0, 500000.0])),
            "local_rope_theta": draw(st.sampled_from([None, 1000.0])),
            "sliding_window": draw(st.sampled_from([1, 6, 7])),
            "layer_types": tuple(draw(st.lists(kinds, min_size=layers, max_size=layers))),
            "attention_bias": biased,
            "attention_output_bias": biased,
            "head_act": draw(st.sampled_from(["gelu", "silu"])),
            **{name: draw(st.booleans()) for name in ("mlp_bias", "norm_bias", "head_bias", "head_transform_bias")},
        }
    if family == "gemma2":
        values |= {
            "attention_multiplier": draw(st.sampled_from([None, 10**-0.5])),
            "attn_logit_softcapping": draw(st.sampled_from([None, 5.0])),
            "final_logit_softcapping": draw(st.sampled_from([None, 3.0])),
        }
    if family == "granite":
        values |= {
            name: draw(st.sampled_from([0.25, 1.0, 3.0]))
            for name in ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
        }
    if family in MIXTURES:
        values |= {"num_experts": 4, "num_experts_per_tok": draw(st.integers(1, 3))}
    if family == "qwen3_moe":
        dense = st.lists(st.integers(0, values["num_hidden_layers"] - 1), unique=True)
        values |= {
            "moe_intermediate_size": 16,
            "norm_topk_prob": draw(st.booleans()),
            "mlp_only_layers": tuple(draw(dense)),
        }
    return settings_of(family, **values)


def trained(settings: ModelSettings, dtype: torch.dtype = torch.float32) -> Decoder:
    """A model in which no two parameters are alike, biases and norms included."""
    model = build_model(settings, attn_implementation="reference")
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype)


def auto_class(family: str) -> Any:
    """The class of transformers that loads a family's language model."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    if family in OF_BOTH:
        return AutoModelForSeq2SeqLM
    return AutoModelForMaskedLM if family in ENCODERS else AutoModelForCausalLM


def weights_of(model: Decoder) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def exported(model: Decoder, tokenizer_file: Path, out: Path, **options: Any) -> Path:
    export_hf(weights_of(model), model.settings, tokenizer_file, out, end_of_text=END, **options)
    return out


def write_tokenizer(path: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END, *PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["def main() -> None: return 1, 2, 3\n"] * 9, trainer)
    tokenizer.save(str(path))
    return path

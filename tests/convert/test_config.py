"""config.json says what the settings say, in both directions, and nothing is skipped silently."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.config.families import FAMILIES as CHOICES
from bigtrain.convert.config_json import config_of, differences, obstacles
from bigtrain.convert.config_json import settings_of as read
from bigtrain.convert.families import FAMILIES
from bigtrain.convert.gguf import architecture_of
from bigtrain.model.layers.rotary import attention_factor, rotary_frequencies
from tests.convert.helpers import CONTEXT, OF_BART, OF_BOTH, T5, WHOLE_HEADS, settings_of, shapes

SHAPE = {
    "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "max_position_embeddings": CONTEXT, "head_dim": 16,
}  # fmt: skip
T5_SHAPE = {"vocab_size": 320, "d_model": 32, "num_layers": 4, "num_heads": 4, "d_ff": 40}
BART_SHAPE = {
    "vocab_size": 320, "d_model": 32, "encoder_layers": 4, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40,
}  # fmt: skip
XLNET_SHAPE = {"vocab_size": 320, "d_model": 32, "n_layer": 4, "n_head": 4, "d_inner": 40}
GPT2_SHAPE = {"vocab_size": 320, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": CONTEXT}


def smallest(family: str) -> dict[str, Any]:
    """A config.json without any key that may be left out."""
    if family == "gpt2":
        return {"model_type": family, **GPT2_SHAPE}
    if family == "xlnet":
        return {"model_type": family, **XLNET_SHAPE}
    if family in T5:
        return {"model_type": "t5", **T5_SHAPE}
    if family in OF_BART:
        return {"model_type": family, **BART_SHAPE}
    derived = {"num_key_value_heads", "head_dim"} if family in WHOLE_HEADS else set()
    return {"model_type": family, **{key: value for key, value in SHAPE.items() if key not in derived}}


def test_every_family_has_a_description() -> None:
    assert CHOICES.keys() - FAMILIES.keys() == {"lstm", "gru", "char_lstm", "bahdanau", "luong"}
    assert FAMILIES.keys() <= CHOICES.keys()


def test_a_recurrent_model_is_not_exported() -> None:
    """transformers has no language model of an LSTM, and llama.cpp neither."""
    model = ModelSettings(
        family="lstm", hidden_size=8, num_hidden_layers=1, vocab_size=320, max_position_embeddings=CONTEXT
    )
    assert obstacles(model) == ["transformers has no class for family lstm"]
    with pytest.raises(BigtrainError, match="models of family lstm are not exported to GGUF") as refused:
        architecture_of(model)
    assert "no other tool knows this model" in str(refused.value.fix)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_settings_survive_the_round_through_config_json(family: str, data: st.DataObject) -> None:
    model = data.draw(shapes(family))
    assert obstacles(model) == []
    back, notes = read(json.loads(json.dumps(config_of(model))))
    assert (differences(model, back), notes) == ({}, [])
    assert config_of(back) == config_of(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_that_is_left_out_has_the_value_that_transformers_takes(family: str) -> None:
    from transformers import CONFIG_MAPPING

    config = smallest(family)
    model_type = config["model_type"]
    known = {k: v for k, v in config.items() if k != "model_type"}
    full = json.loads(CONFIG_MAPPING[model_type](**known).to_json_string())
    theirs, _ = read({"model_type": model_type, **full})
    ours, _ = read(config)
    assert differences(ours, theirs) == {}
    assert ours.initializer_range == theirs.initializer_range


SCALINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
    "yarn of another width": {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 16.0,
        "beta_slow": 2.0, "attention_factor": 1.25,
    },
    "yarn with two scales": {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    "yarn of an unknown past": {"rope_type": "yarn", "factor": 2.0},
    "llama3 of an unknown past": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("theta", [10000.0, 1e6])
def test_frequencies_are_those_of_transformers(name: str, older: bool, theta: float) -> None:
    """Frequencies are those that transformers computes from the same file."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling = SCALINGS[name]
    config = {"model_type": "llama", **SHAPE, "head_dim": 64, "max_position_embeddings": 16384}
    if older:
        before = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
        config |= {"rope_theta": theta, "rope_scaling": before or None}
    else:
        config |= {"rope_parameters": {"rope_theta": theta, "rope_type": "default", **scaling}}
    theirs = LlamaRotaryEmbedding(LlamaConfig(**json.loads(json.dumps(config))))
    ours, _ = read(config)
    torch.testing.assert_close(rotary_frequencies(ours), theirs.inv_freq, rtol=2e-6, atol=0)
    assert attention_factor(ours.rope_scaling) == pytest.approx(theirs.attention_scaling)
    again = LlamaRotaryEmbedding(LlamaConfig(**config_of(ours)))
    torch.testing.assert_close(again.inv_freq, theirs.inv_freq, rtol=2e-6, atol=0)
    assert again.attention_scaling == pytest.approx(theirs.attention_scaling)


def test_ntk_is_exported_as_the_raised_base_that_it_is() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    model = settings_of("llama", rope_scaling={"rope_type": "ntk", "factor": 4.0})
    theirs = LlamaRotaryEmbedding(LlamaConfig(**config_of(model)))
    torch.testing.assert_close(rotary_frequencies(model), theirs.inv_freq, rtol=1e-6, atol=0)
    assert "rope_scaling" not in config_of(model)


PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # as they lie on the hub, but for the shape
    "gpt2": (
        {
            "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
            "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
            "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None,
            "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
            "summary_use_proj": True,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257,
        },
        {"intermediate_size": 3072, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
    ),
    "pythia": (
        {
            "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
            "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
            "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8,
            "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
            "torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": True,
            "use_parallel_residual": True, "vocab_size": 50304,
        },
        {"partial_rotary_factor": 0.25, "parallel_residual": True, "rotary_width": 16},
    ),
    "llama 3.1": (
        {
            "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
            "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096,
            "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072,
            "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192, "rope_type": "llama3"},
            "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "transformers_version": "4.43.0.dev0", "use_cache": True, "vocab_size": 128256,
        },
        {"rope_theta": 500000.0, "norm_eps": 1e-5, "head_width": 128},
    ),
    "qwen2.5": (
        {
            "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
            "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
            "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
            "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
            "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": True, "use_mrope": False,
            "use_sliding_window": False, "vocab_size": 151936,
        },
        {"attention_bias": True, "attention_output_bias": False, "sliding_window": None},
    ),
    "gemma 2": (
        {
            "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
            "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
            "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
            "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2",
            "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0,
            "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
            "torch_dtype": "float32", "transformers_version": "4.42.0.dev0", "use_cache": True, "vocab_size": 256000,
        },
        {"layer_types": ("sliding_attention", "full_attention"), "attention_scale": 1 / 16},
    ),
    "mixtral": (
        {
            "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
            "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
            "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32,
            "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
            "output_router_logits": False, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.02, "sliding_window": None, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0", "use_cache": True, "vocab_size": 32000,
        },
        {"num_experts": 8, "expert_width": 14336, "norm_topk_prob": True, "sliding_window": None},
    ),
    "qwen3 moe": (
        {
            "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
            "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128,
            "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144,
            "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [],
            "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": True,
            "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
            "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_scaling": None,
            "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None,
            "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
            "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
        },
        {"num_experts": 128, "expert_width": 768, "qk_norm": "head", "mlp_only_layers": ()},
    ),
}  # fmt: skip


PUBLISHED |= {
    "t5": (
        {
            "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
            "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
            "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512,
            "num_heads": 8, "num_layers": 6, "output_past": True, "pad_token_id": 0,
            "relative_attention_num_buckets": 32, "task_specific_params": {"summarization": {"num_beams": 4}},
            "vocab_size": 32128,
        },
        {"architecture": "encoder_decoder", "logits_scaling": "sqrt_hidden_size", "decoder_layers": 6,
         "hidden_act": "relu", "gated_mlp": False, "attention_scale": 1.0},
    ),
    "t5_v1_1": (
        {
            "architectures": ["T5ForConditionalGeneration"], "d_ff": 1024, "d_kv": 64, "d_model": 512,
            "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
            "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5",
            "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8, "output_past": True, "pad_token_id": 0,
            "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "vocab_size": 32128,
        },
        {"tie_word_embeddings": False, "logits_scaling": 1.0, "hidden_act": "gelu_pytorch_tanh", "gated_mlp": True},
    ),
    "bart": (
        {
            "activation_dropout": 0.1, "activation_function": "gelu", "add_bias_logits": False,
            "add_final_layer_norm": False, "architectures": ["BartForConditionalGeneration"], "attention_dropout": 0.1,
            "bos_token_id": 0, "classif_dropout": 0.1, "classifier_dropout": 0.0, "d_model": 768,
            "decoder_attention_heads": 12, "decoder_ffn_dim": 3072, "decoder_layerdrop": 0.0, "decoder_layers": 6,
            "decoder_start_token_id": 2, "dropout": 0.1, "early_stopping": True, "encoder_attention_heads": 12,
            "encoder_ffn_dim": 3072, "encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 2,
            "forced_eos_token_id": 2, "gradient_checkpointing": False, "init_std": 0.02, "is_encoder_decoder": True,
            "max_position_embeddings": 1024, "model_type": "bart", "no_repeat_ngram_size": 3, "normalize_before": False,
            "normalize_embedding": True, "num_beams": 4, "num_hidden_layers": 6, "pad_token_id": 1,
            "scale_embedding": False, "torch_dtype": "float32", "use_cache": True, "vocab_size": 50265,
        },
        {"position_offset": 2, "embedding_norm": True, "embedding_multiplier": 1.0, "decoder_layers": 6},
    ),
    "marian": (
        {
            "activation_dropout": 0.0, "activation_function": "swish", "add_bias_logits": False,
            "add_final_layer_norm": False, "architectures": ["MarianMTModel"], "attention_dropout": 0.0,
            "bad_words_ids": [[58100]], "bos_token_id": 0, "classif_dropout": 0.0, "d_model": 512,
            "decoder_attention_heads": 8, "decoder_ffn_dim": 2048, "decoder_layerdrop": 0.0, "decoder_layers": 6,
            "decoder_start_token_id": 58100, "decoder_vocab_size": 58101, "dropout": 0.1, "encoder_attention_heads": 8,
            "encoder_ffn_dim": 2048, "encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 0,
            "extra_pos_embeddings": 58101, "init_std": 0.02, "is_encoder_decoder": True,
            "max_position_embeddings": 512, "model_type": "marian", "normalize_before": False,
            "normalize_embedding": False, "num_beams": 6, "num_hidden_layers": 6, "pad_token_id": 58100,
            "scale_embedding": True, "share_encoder_decoder_embeddings": True, "static_position_embeddings": True,
            "vocab_size": 58101,
        },
        {"hidden_act": "silu", "embedding_multiplier": "sqrt_hidden_size", "sinusoidal_layout": "halves",
         "head_bias": True},
    ),
    "xlnet": (
        {
            "architectures": ["XLNetLMHeadModel"], "attn_type": "bi", "bi_data": False, "bos_token_id": 1,
            "clamp_len": -1, "d_head": 64, "d_inner": 3072, "d_model": 768, "dropout": 0.1, "end_n_top": 5,
            "eos_token_id": 2, "ff_activation": "gelu", "initializer_range": 0.02, "layer_norm_eps": 1e-12,
            "mem_len": None, "model_type": "xlnet", "n_head": 12, "n_layer": 12, "pad_token_id": 5, "reuse_len": None,
            "same_length": False, "start_n_top": 5, "summary_activation": "tanh", "summary_last_dropout": 0.1,
            "summary_type": "last", "summary_use_proj": True, "task_specific_params": {"text-generation": {
                "do_sample": True, "max_length": 250}}, "untie_r": True, "vocab_size": 32000,
        },
        {"architecture": "two_stream", "position_embedding": "transformer_xl", "norm_eps": 1e-12, "hidden_act": "gelu",
         "head_bias": True, "tie_word_embeddings": True, "max_position_embeddings": 512},
    ),
    "bert": (
        {
            "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False,
            "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
            "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
            "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
            "position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0", "type_vocab_size": 2,
            "use_cache": True, "vocab_size": 30522,
        },
        {"architecture": "encoder", "norm_eps": 1e-12, "type_vocab_size": 2, "tie_word_embeddings": True},
    ),
    "roberta": (
        {
            "architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0,
            "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
            "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
            "max_position_embeddings": 514, "model_type": "roberta", "num_attention_heads": 12,
            "num_hidden_layers": 12, "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265,
        },
        {"max_position_embeddings": 512, "position_offset": 2, "type_vocab_size": 1, "norm_eps": 1e-5},
    ),
    "albert": (
        {
            "architectures": ["AlbertForMaskedLM"], "attention_probs_dropout_prob": 0, "bos_token_id": 2,
            "classifier_dropout_prob": 0.1, "down_scale_factor": 1, "embedding_size": 128, "eos_token_id": 3,
            "gap_size": 0, "hidden_act": "gelu_new", "hidden_dropout_prob": 0, "hidden_size": 768,
            "initializer_range": 0.02, "inner_group_num": 1, "intermediate_size": 3072, "layer_norm_eps": 1e-12,
            "max_position_embeddings": 512, "model_type": "albert", "net_structure_type": 0,
            "num_attention_heads": 12, "num_hidden_groups": 1, "num_hidden_layers": 12, "num_memory_blocks": 0,
            "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 30000,
        },
        {"num_hidden_groups": 1, "embedding_size": 128, "hidden_act": "gelu_pytorch_tanh"},
    ),
    "modernbert": (
        {
            "architectures": ["ModernBertForMaskedLM"], "attention_bias": False, "attention_dropout": 0.0,
            "bos_token_id": 50281, "classifier_activation": "gelu", "classifier_bias": False,
            "classifier_dropout": 0.0, "classifier_pooling": "mean", "cls_token_id": 50281, "decoder_bias": True,
            "deterministic_flash_attn": False, "embedding_dropout": 0.0, "eos_token_id": 50282,
            "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "gradient_checkpointing": False,
            "hidden_activation": "gelu", "hidden_size": 768, "initializer_cutoff_factor": 2.0,
            "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-05, "local_attention": 128,
            "local_rope_theta": 10000.0, "max_position_embeddings": 8192, "mlp_bias": False, "mlp_dropout": 0.0,
            "model_type": "modernbert", "norm_bias": False, "norm_eps": 1e-05, "num_attention_heads": 12,
            "num_hidden_layers": 22, "pad_token_id": 50283, "position_embedding_type": "absolute",
            "sep_token_id": 50282, "tie_word_embeddings": True, "torch_dtype": "float32",
            "transformers_version": "4.47.0.dev0", "vocab_size": 50368,
        },
        {
            "sliding_window": 128, "local_rope_theta": 10000.0, "rope_theta": 160000.0, "norm_bias": False,
            "layer_types": ("full_attention", "sliding_attention", "sliding_attention"),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read(name: str) -> None:
    config, wanted = PUBLISHED[name]
    model, notes = read(config)
    assert {key: getattr(model, key) for key in wanted} == wanted
    assert obstacles(model) == []
    assert bool(notes) == (
        name in ("gpt2", "bert", "roberta", "xlnet", *OF_BOTH)
    )  # they were trained with dropout, which is said


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "of no family": ("llama", {"model_type": "mamba"}, "mamba"),
    "another head": ("llama", {"architectures": ["LlamaForMultipleChoice"]}, "LlamaForCausalLM"),
    "an unknown key": ("llama", {"use_parallel_residual": True}, "use_parallel_residual"),
    "several unknown keys": ("olmo2", {"clip_qkv": 8.0, "alibi": True}, r"clip_qkv.*alibi"),
    "code of its own": ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "auto_map"),
    "quantized": ("mistral", {"quantization_config": {"bits": 4}}, "quantization_config"),
    "dynamic positions": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    "longrope": ("llama", {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}}, "longrope"),
    "an untruncated ramp": (
        "llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate",
    ),
    "half a rotation": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "two bases": ("llama", {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "two places"),
    "scores by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    "two contexts": ("gpt2", {"n_ctx": 77}, "n_ctx"),
    "an unknown function": ("llama", {"hidden_act": "xielu"}, "xielu"),
    "attention both ways": ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "too few layer types": ("qwen3", {"use_sliding_window": True, "layer_types": ["full_attention"]}, "layer_types"),
    "an unknown layer type": (
        "qwen3", {"use_sliding_window": True, "layer_types": ["full_attention", "chunked_attention"] * 2}, "chunked",
    ),
    "a bert that sees one side": ("bert", {"is_decoder": True}, "is_decoder"),
    "an untied bert": ("bert", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    "distances in a bert": ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    "a roberta without padding": ("roberta", {"pad_token_id": None}, "pad_token_id"),
    "blocks in a group": ("albert", {"inner_group_num": 2}, "inner_group_num"),
    "a stretched modernbert": ("modernbert", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
    "two local bases": (
        "modernbert",
        {"local_rope_theta": 1e4, "rope_parameters": {"sliding_attention": {"rope_theta": 2e4}}}, "two places",
    ),
    "text for a number": ("llama", {"hidden_size": "32"}, "hidden_size"),
    "heads that do not divide": ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_we_do_not_compute_is_refused_by_name(name: str) -> None:
    family, changed, named = REFUSED[name]
    read(smallest(family))  # without the change it is read
    with pytest.raises(BigtrainError) as caught:
        read(smallest(family) | changed)
    assert re.search(named, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_shape_that_is_left_out_is_refused(family: str) -> None:
    config = smallest(family)
    for key in [key for key in config if key not in ("model_type", "num_key_value_heads", "head_dim")]:
        with pytest.raises(BigtrainError, match=key):
            read({k: v for k, v in config.items() if k != key})


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(["rope_type", "factor", "rope_theta", "mscale", "mscale_all_dim", "x"]), inner, max_size=4
    ),
    max_leaves=4,
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_stands_in_the_file_it_is_read_or_refused(family: str, data: st.DataObject) -> None:
    known = sorted(name for keys in FAMILIES[family].keys for name in keys.names)
    config = smallest(family) | data.draw(st.dictionaries(st.sampled_from(["model_type", *known]), junk, max_size=2))
    try:
        model, _ = read(config)
    except BigtrainError:
        return
    obstacles(model)


OBSTACLES: dict[str, tuple[str, dict[str, Any], str]] = {
    "norms of queries": ("llama", {"qk_norm": "head"}, "qk_norm is head, llama has none"),
    "a window": ("llama", {"sliding_window": 16}, "sliding"),
    "some layers only": (
        "mistral", {"sliding_window": 8, "layer_types": ("sliding_attention", "full_attention")}, "layer_types",
    ),
    "one bias of two": ("llama", {"attention_bias": True}, "attention_output_bias"),
    "no bias": ("qwen2", {"attention_bias": False}, "attention_bias"),
    "grouped keys": ("gpt2", {"num_key_value_heads": 2}, "num_key_value_heads is 2, gpt2 has 4"),
    "distances": ("llama", {"position_embedding": "alibi"}, "position_embedding is alibi"),
    "norms behind": ("qwen3", {"norm_position": "post"}, "norm_position is post, qwen3 has pre"),
    "half a rotation": ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "scores": ("llama", {"attention_multiplier": 0.125}, "attention_multiplier"),
    "a root that is none": ("gemma2", {"attention_multiplier": 0.3}, "attention_multiplier is 0.3"),
    "divided logits": ("llama", {"mup_base_hidden_size": 16}, "logits_scaling is 2.0, llama has 1.0"),
    "a past of part of a token": (
        "llama", {"rope_scaling": {"rope_type": "yarn", "factor": 5.0}}, "original_max_position_embeddings",
    ),
    "an exact gelu": ("gemma", {"hidden_act": "gelu"}, "hidden_act is gelu, gemma has gelu_pytorch_tanh"),
    "biased balance": ("mixtral", {"num_experts": 4, "router_bias_update_rate": 0.001}, "router_bias_update_rate"),
    "no experts": ("mixtral", {"num_experts": 0, "router_aux_loss_coef": 0.0}, "num_experts"),
    "a decoder": ("bert", {"architecture": "decoder"}, "architecture is decoder, bert has encoder"),
    "a window in bert": ("bert", {"sliding_window": 8}, "layer_types"),
    "an untied head": ("bert", {"tie_word_embeddings": False}, "tie_word_embeddings is False, bert has True"),
    "no segments": ("roberta", {"type_vocab_size": 0}, "type_vocab_size is 0"),
    "positions from 0": ("roberta", {"position_offset": 0}, "pad_token_id"),
    "norms before": ("bert", {"norm_position": "pre"}, "norm_position is pre, bert has post_residual"),
    "another head function": ("bert", {"head_act": "relu"}, "head_act is relu, bert has gelu"),
    "a head of its own, divided": (
        "t5", {"tie_word_embeddings": False}, "logits_scaling is 5.65",
    ),
    "a bias of the logits": ("bart", {"head_bias": True}, "head_bias is True, bart has False"),
    "interleaved waves": ("marian", {"sinusoidal_layout": "interleaved"}, "sinusoidal_layout is interleaved"),
    "an exact gate": ("t5_v1_1", {"hidden_act": "gelu"}, "hidden_act is gelu, t5_v1_1 has gelu_pytorch_tanh"),
    "scaled scores": ("t5", {"attention_multiplier": 0.5}, "attention_multiplier is 0.5, t5 has 1.0"),
    "raw weights": ("mixtral", {"num_experts": 4, "norm_topk_prob": False}, "norm_topk_prob"),
}  # fmt: skip


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_a_family_cannot_express_is_named_with_both_values(name: str) -> None:
    family, values, named = OBSTACLES[name]
    model = settings_of(family, **values)
    assert any(named in obstacle for obstacle in obstacles(model)), obstacles(model)
    with pytest.raises(BigtrainError, match="transformers cannot compute"):
        config_of(model)


def test_what_only_training_knows_is_no_obstacle() -> None:
    values = {"z_loss_coef": 1e-4, "num_nextn_predict_layers": 1, "initializer_range": 0.01, "expect_parameters": "1M"}
    assert obstacles(settings_of("llama", **values)) == []
    assert obstacles(settings_of("granite", mup_base_hidden_size=16)) == []  # its logits can be divided
    assert config_of(settings_of("granite", mup_base_hidden_size=16))["logits_scaling"] == 2.0

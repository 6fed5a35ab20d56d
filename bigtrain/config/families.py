"""Model families: each is a name for a set of choices. `llama` has the defaults of the section `model`; the other
families list their differences from it. Any key may be given another value beside the family's name.

A new family is a new entry here, and one in `bigtrain.convert.families` with its names at Hugging Face, if it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BIASED: dict[str, Any] = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}
_GEMMA: dict[str, Any] = {
    "norm": "rms_norm_zero_centered",
    "norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "embedding_multiplier": "sqrt_hidden_size",
}
_ENCODER: dict[str, Any] = {
    "architecture": "encoder",
    "norm": "layer_norm",
    "hidden_act": "gelu",
    "tie_word_embeddings": True,
    "embedding_norm": True,
    "head_transform": True,
    "head_bias": True,
}
_BERT: dict[str, Any] = {
    **_ENCODER,
    **_BIASED,
    "norm_eps": 1e-12,
    "norm_position": "post_residual",
    "position_embedding": "learned",
    "gated_mlp": False,
    "type_vocab_size": 2,
    "classifier_transform": "pooler",
}
_T5: dict[str, Any] = {
    "architecture": "encoder_decoder",
    "norm_eps": 1e-6,
    "position_embedding": "t5",
    "attention_multiplier": 1.0,
    "classifier_transform": "tanh",
}
_POST_NORM: dict[str, Any] = {
    **_BIASED,
    "architecture": "encoder_decoder",
    "norm": "layer_norm",
    "norm_position": "post_residual",
    "gated_mlp": False,
    "tie_word_embeddings": True,
    "classifier_transform": "tanh",
}
_RECURRENT: dict[str, Any] = {
    "architecture": "recurrent",
    "position_embedding": "none",
    "initializer_range": 0.05,
    "embedding_multiplier": "sqrt_hidden_size",
}
_XLNET: dict[str, Any] = {
    "architecture": "two_stream",
    "norm": "layer_norm",
    "norm_eps": 1e-12,
    "norm_position": "post_residual",
    "position_embedding": "transformer_xl",
    "hidden_act": "gelu",
    "gated_mlp": False,
    "mlp_bias": True,
    "tie_word_embeddings": True,
    "head_bias": True,
    "classifier_transform": "pooler",
}
_MIXTURE: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.001}

FAMILIES: dict[str, Mapping[str, Any]] = {
    "llama": {},
    "gpt2": {
        **_BIASED,
        "norm": "layer_norm",
        "position_embedding": "learned",
        "hidden_act": "gelu_pytorch_tanh",
        "gated_mlp": False,
    },
    "gpt_neox": {
        **_BIASED,
        "norm": "layer_norm",
        "parallel_residual": True,
        "partial_rotary_factor": 0.25,
        "hidden_act": "gelu",
        "gated_mlp": False,
    },
    "mistral": {"sliding_window": 4096},
    "qwen2": {"norm_eps": 1e-6, "attention_bias": True},
    "qwen3": {"norm_eps": 1e-6, "qk_norm": "head"},
    "olmo2": {"norm_position": "post", "qk_norm": "full"},
    "gemma": _GEMMA,
    "gemma2": {
        **_GEMMA,
        "norm_position": "sandwich",
        "sliding_window": 4096,
        "layer_types": ("sliding_attention", "full_attention"),
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "granite": {"norm_eps": 1e-6},
    "mixtral": _MIXTURE,
    "qwen3_moe": {**_MIXTURE, "norm_eps": 1e-6, "qk_norm": "head", "num_experts": 128, "num_experts_per_tok": 8},
    "bert": _BERT,
    "roberta": {
        **_BERT,
        "norm_eps": 1e-5,
        "position_offset": 2,
        "type_vocab_size": 1,
        "head_act": "gelu",
        "classifier_transform": "tanh",
    },
    "albert": {**_BERT, "hidden_act": "gelu_pytorch_tanh", "embedding_size": 128, "num_hidden_groups": 1},
    "modernbert": {
        **_ENCODER,
        "norm_bias": False,
        "first_attention_norm": False,
        "rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "sliding_window": 128,
        "layer_types": ("full_attention", "sliding_attention", "sliding_attention"),
        "head_transform_bias": False,
        "head_act": "gelu",
        "classifier_transform": "norm",
    },
    "t5": {
        **_T5,
        "hidden_act": "relu",
        "gated_mlp": False,
        "tie_word_embeddings": True,
        "logits_scaling": "sqrt_hidden_size",
    },
    "t5_v1_1": {**_T5, "hidden_act": "gelu_pytorch_tanh"},
    "bart": {
        **_POST_NORM,
        "position_embedding": "learned",
        "position_offset": 2,
        "hidden_act": "gelu",
        "embedding_norm": True,
    },
    "marian": {
        **_POST_NORM,
        "position_embedding": "sinusoidal",
        "sinusoidal_layout": "halves",
        "hidden_act": "silu",
        "embedding_multiplier": "sqrt_hidden_size",
        "head_bias": True,
    },
    "lstm": {**_RECURRENT, "head_bias": True},
    "gru": {**_RECURRENT, "cell": "gru", "head_bias": True},
    "char_lstm": {**_RECURRENT, "character_filters": (25, 50, 75, 100, 125, 150), "head_bias": True},
    "bahdanau": {
        **_RECURRENT,
        "architecture": "recurrent_encoder_decoder",
        "cell": "gru",
        "attention_score": "additive",
    },
    "luong": {**_RECURRENT, "architecture": "recurrent_encoder_decoder"},
    "xlnet": _XLNET,
}

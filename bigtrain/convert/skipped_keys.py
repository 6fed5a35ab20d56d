"""Keys of published config.json files that transformers does not read for a family, and which of their values are true.

A key about files, tools or training says nothing about what a model computes. Any other key is a claim about the model:
`qkv_bias: false` is true of a llama, and `qkv_bias: true` is not, whatever transformers makes of it. A key that is in
neither table is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from bigtrain.config import ModelSettings
from bigtrain.convert.config_keys import ACTIVATIONS, windows
from bigtrain.model import effective_theta

Claim = Callable[[Any, ModelSettings, Mapping[str, Any]], bool]
"""Whether a value is true of a model; also given all of config.json."""

_ABOUT_FILES = frozenset({
    # tools and files
    "transformers.js_config", "custom_pipelines", "is_llama_config", "output_past", "xla_device", "model_name",
    "license", "tokenizer_type", "tokenizer_model_max_length", "tokenizer_padding_side", "model_max_length",
    "bos_token", "eos_token", "pad_token", "unk_token", "end_token_id", "start_token_id", "eos_token_ids",
    "n_special", "predict_special_tokens", "_num_labels", "line_by_line", "gpu_memory", "ep_size", "tp_size",
    # lengths that texts or batches had
    "max_sequence_length", "max_seq_len", "max_seq_length", "seq_len", "seq_length", "model_input_length",
    # how the same is computed
    "use_flash_attention", "use_flash_attention_2", "use_flash_attn", "flash_attention", "flash_attn",
    "_flash_attn_2_enabled", "_flash_attention_2_enabled", "use_sdpa", "use_fused_rms_norm", "use_fused_swiglu",
    "fused_rms_norm", "pretraining_tp", "use_cache_kernel", "use_cache_quantization", "softmax_in_fp32",
    "attention_softmax_in_fp32", "upcast_attention", "fp32", "fp16", "bf16",
    # how it was trained: where it started, noise, losses
    "init_method", "init_std", "initializer_factor", "use_liger", "gradient_checkpointing_kwargs",
    "neftune_noise_alpha", "dropout", "attn_dropout", "attention_dropout", "attention_dropout_prob",
    "attention_probs_dropout_prob",
    "attn_pdrop", "resid_pdrop", "residual_dropout", "embd_pdrop", "embedding_dropout", "hidden_dropout",
    "hidden_dropout_prob", "activation_dropout", "classifier_dropout", "ffn_dropout", "mlp_dropout", "layerdrop",
    "drop_path_rate", "router_aux_loss_coef", "router_z_loss_coef", "output_router_logits", "router_jitter_noise",
    "aux_loss_alpha", "seq_aux", "z_loss", "z_loss_coef", "label_smoothing", "ignore_index",
})  # fmt: skip
_PREFIXES = ("unsloth_",)
"""Keys of a tool, which begin with its name."""


def is_about_files(key: str) -> bool:
    """Whether a key says nothing about what a model computes."""
    return key in _ABOUT_FILES or key.startswith(_PREFIXES)


def claim_of(key: str) -> Claim | None:
    """How a key's value is compared with a model; None for a key that is not known."""
    return _CLAIMS.get(key)


def _is(*values: Any) -> Claim:
    return lambda value, model, config: any(_equal(value, true) for true in values)


def _setting(read: Callable[[ModelSettings], Any], *also: Any) -> Claim:
    return lambda value, model, config: any(_equal(value, true) for true in (read(model), *also))


def _equal(value: Any, true: Any) -> bool:
    """As JSON: 1 is 1.0 and no true, and a rounded number is the number."""
    if isinstance(value, bool) or isinstance(true, bool):
        return value is true
    if isinstance(value, int | float) and isinstance(true, int | float):
        try:
            return math.isclose(value, true, rel_tol=1e-9)
        except OverflowError:  # an integer that no float is near
            return False
    return type(value) is type(true) and bool(value == true)


def _expert_setting(read: Callable[[ModelSettings], Any]) -> Claim:
    """A setting of a mixture; without experts it may be anything."""
    return lambda value, model, config: not model.num_experts or _equal(value, read(model))


def _window(value: Any, model: ModelSettings, config: Mapping[str, Any]) -> bool:
    if value is None or config.get("use_sliding_window", True) is False:
        return not any(windows(model))
    return isinstance(value, int) and all(
        value == window if window is not None else value >= model.max_position_embeddings for window in windows(model)
    )


def _layer_types(value: Any, model: ModelSettings, config: Mapping[str, Any]) -> bool:
    return bool(value == ["full_attention" if window is None else "sliding_attention" for window in windows(model)])


def _activation(value: Any, model: ModelSettings, config: Mapping[str, Any]) -> bool:
    return isinstance(value, str) and ACTIVATIONS.get(value) == model.hidden_act


def _norm(value: Any, model: ModelSettings, config: Mapping[str, Any]) -> bool:
    name = value.lower().replace("_", "") if isinstance(value, str) else None
    return name == model.norm.replace("_", "")


def _positions(value: Any, model: ModelSettings, config: Mapping[str, Any]) -> bool:
    named = {"rope": "rope", "rotary": "rope", "absolute": "learned", "learned": "learned", "alibi": "alibi"}
    return isinstance(value, str) and named.get(value) == model.position_embedding


def _all_biases(value: Any, model: ModelSettings, config: Mapping[str, Any]) -> bool:
    return all(value is bias for bias in (model.attention_bias, model.attention_output_bias, model.mlp_bias))


_HEADS = _setting(lambda model: model.num_attention_heads)
_LAYERS = _setting(lambda model: model.num_hidden_layers)
_WIDTH = _setting(lambda model: model.hidden_size)
_KEYS = _setting(lambda model: model.key_value_heads)
_HEAD_WIDTH = _setting(lambda model: model.head_width)
_INNER = _setting(lambda model: model.intermediate_size)
_EPS = _setting(lambda model: model.norm_eps)
_BIAS = _setting(lambda model: model.attention_bias)
_MLP_BIAS = _setting(lambda model: model.mlp_bias)
_QK_NORM = _setting(lambda model: model.qk_norm != "none")
_PARALLEL = _setting(lambda model: model.parallel_residual)
_TIED = _setting(lambda model: model.tie_word_embeddings)
_EXPERTS = _setting(lambda model: model.num_experts)
_CHOSEN = _expert_setting(lambda model: model.num_experts_per_tok)
_THETA = _setting(lambda model: effective_theta(model) if model.position_embedding == "rope" else None)
_SHARE = _setting(lambda model: model.partial_rotary_factor)
_SCALE = _setting(lambda model: model.attention_scale)
_NONE = _is(0, False)
_OFF = _is(False)
_ONE = _is(1)

_CLAIMS: Mapping[str, Claim] = {
    # shape
    "n_embd": _WIDTH, "d_model": _WIDTH, "dim": _WIDTH, "hidden_size": _WIDTH, "embedding_size": _WIDTH,
    "n_layer": _LAYERS, "n_layers": _LAYERS, "num_layers": _LAYERS, "num_hidden_layers": _LAYERS,
    "n_head": _HEADS, "n_heads": _HEADS, "num_heads": _HEADS, "num_attention_heads": _HEADS,
    "n_kv_heads": _KEYS, "n_head_kv": _KEYS, "num_kv_heads": _KEYS, "num_key_value_heads": _KEYS,
    "multi_query": _setting(lambda model: model.key_value_heads == 1 and model.num_attention_heads > 1),
    "head_dim": _HEAD_WIDTH, "head_size": _HEAD_WIDTH, "d_head": _HEAD_WIDTH, "d_kv": _HEAD_WIDTH,
    "n_inner": _INNER, "ffn_dim": _INNER, "d_ff": _INNER, "ffn_hidden_size": _INNER, "intermediate_size": _INNER,
    "hidden_dim": _INNER, "n_ctx": _setting(lambda model: model.max_position_embeddings),
    "n_positions": _setting(lambda model: model.max_position_embeddings),
    "max_position_embeddings": _setting(lambda model: model.max_position_embeddings),
    "n_vocab": _setting(lambda model: model.vocab_size), "padded_vocab_size": _setting(lambda model: model.vocab_size),
    "tie_embeddings": _TIED, "tie_weights": _TIED, "tie_word_embedding": _TIED, "use_tied_embeddings": _TIED,
    # norms and residuals
    "layer_norm_eps": _EPS, "layer_norm_epsilon": _EPS, "norm_eps": _EPS, "norm_epsilon": _EPS, "rms_norm_eps": _EPS,
    "norm_type": _norm, "normalization_type": _norm, "normalization": _norm, "layer_norm_type": _norm,
    "use_rms_norm": _setting(lambda model: model.norm == "rms_norm"),
    "use_parallel_residual": _PARALLEL, "parallel_residual": _PARALLEL, "parallel_attn": _PARALLEL,
    "use_post_norm": _OFF, "residual_multiplier": _setting(lambda model: model.residual_multiplier),
    "scale_depth": _ONE, "scale_emb": _setting(lambda model: model.embedding_multiplier),
    "embedding_multiplier": _setting(lambda model: model.embedding_multiplier), "logit_scale": _ONE,
    "logits_scaling": _setting(lambda model: model.logits_scaling), "output_multiplier": _ONE,
    # attention
    "qkv_bias": _BIAS, "attn_qkv_bias": _BIAS, "attention_qkv_bias": _BIAS, "add_qkv_bias": _BIAS,
    "use_qkv_bias": _BIAS, "attention_bias": _BIAS, "attn_bias": _BIAS, "use_attention_bias": _BIAS,
    "attention_output_bias": _setting(lambda model: model.attention_output_bias),
    "attention_out_bias": _setting(lambda model: model.attention_output_bias),
    "bias": _all_biases, "use_bias": _all_biases,
    "no_bias": lambda value, model, config: isinstance(value, bool) and _all_biases(not value, model, config),
    "use_qk_norm": _QK_NORM, "qk_norm": _QK_NORM, "qk_layernorm": _QK_NORM, "use_qk_layernorm": _QK_NORM,
    "use_sliding_window": _setting(lambda model: any(windows(model))), "sliding_window": _window,
    "sliding_window_size": _window, "sliding_window_pattern": _is(), "layer_types": _layer_types,
    "max_window_layers": lambda value, model, config: not any(windows(model)),
    "attention_multiplier": _SCALE, "softmax_scale": _SCALE, "attention_scale": _SCALE,
    "query_pre_attn_scalar": _setting(lambda model: model.attention_scale**-2),
    "attn_logit_softcapping": _setting(lambda model: model.attn_logit_softcapping),
    "final_logit_softcapping": _setting(lambda model: model.final_logit_softcapping),
    "attention_logit_cap": _setting(lambda model: model.attn_logit_softcapping), "clip_qkv": _is(),
    "use_bidirectional_attention": _OFF, "use_logn_attn": _OFF, "logn_attn": _OFF, "use_mla": _OFF,
    "attention_gate": _OFF, "use_gated_attention": _OFF, "use_attention_sinks": _OFF, "scale_attn_weights": _is(True),
    "scale_attn_by_inverse_layer_idx": _OFF, "value_residual": _OFF,
    # positions
    "rope_theta": _THETA, "rope_base": _THETA, "rotary_base": _THETA, "rotary_emb_base": _THETA,
    "rope_freq_base": _THETA, "rope_ratio": _ONE, "rope_scaling_factor": _ONE, "rope_pct": _SHARE, "rotary_pct": _SHARE,
    "rotary_percent": _SHARE, "partial_rotary_factor": _SHARE,
    "rotary_dim": _setting(lambda model: model.rotary_width),
    "rotary_ndims": _setting(lambda model: model.rotary_width),
    "rope_interleaved": _OFF, "rope_interleave": _OFF, "rotary_interleaved": _OFF, "interleaved_rope": _OFF,
    "use_interleaved_rope": _OFF, "use_mrope": _OFF, "use_dynamic_ntk": _OFF, "no_rope_layers": _is(),
    "no_rope_layer_interval": _NONE, "alibi": _setting(lambda model: model.position_embedding == "alibi"),
    "use_alibi": _setting(lambda model: model.position_embedding == "alibi"),
    "use_rope": _setting(lambda model: model.position_embedding == "rope"),
    "use_rotary": _setting(lambda model: model.position_embedding == "rope"),
    "rotary": _setting(lambda model: model.position_embedding == "rope"),
    "position_embedding_type": _positions, "pos_embedding_type": _positions,
    # feed-forward
    "hidden_act": _activation, "hidden_activation": _activation, "activation_function": _activation,
    "activation": _activation, "mlp_hidden_act": _activation, "mlp_bias": _MLP_BIAS, "ffn_bias": _MLP_BIAS,
    "use_mlp_bias": _MLP_BIAS, "gated_mlp": _setting(lambda model: model.gated_mlp),
    # experts
    "num_experts": _EXPERTS, "num_local_experts": _EXPERTS, "n_routed_experts": _EXPERTS, "moe_num_experts": _EXPERTS,
    "num_experts_per_tok": _CHOSEN, "num_experts_per_token": _CHOSEN, "moe_topk": _CHOSEN,
    "moe_intermediate_size": _expert_setting(lambda model: model.expert_width),
    "norm_topk_prob": _expert_setting(lambda model: model.norm_topk_prob),
    "shared_expert_intermediate_size": _NONE, "shared_intermediate_size": _NONE, "n_shared_experts": _NONE,
    "num_shared_experts": _NONE, "moe_shared_expert_intermediate_size": _NONE, "use_shared_expert": _OFF,
    "first_k_dense_replace": lambda value, model, config: not model.num_experts or _NONE(value, model, config),
    "decoder_sparse_step": lambda value, model, config: not model.num_experts or _ONE(value, model, config),
    "moe_layer_freq": lambda value, model, config: not model.num_experts or _ONE(value, model, config),
    "mlp_only_layers": lambda value, model, config: not model.num_experts or value == [],
    "num_nextn_predict_layers": _NONE, "num_mtp_layers": _NONE, "mtp_num_layers": _NONE,
}  # fmt: skip
"""`null` stands for a key that is left out, and is true of every model; so `_is()` is true of nothing else."""

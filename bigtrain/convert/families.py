"""What each family is at Hugging Face: one description, read in both directions.

keys       config.json and the section model
weights    names and layouts of tensors; ours are the same for every family

What no row mentions is what every model of the family has, as `bigtrain.config.families` says: a model with anything
else cannot be exported under that name. A new family is a new entry here and there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.convert import task_heads
from bigtrain.convert.config_keys import (
    REQUIRED,
    Keys,
    activation,
    fixed,
    head_activation,
    in_both,
    key,
    local_attention,
    no_longest_context,
    offset_positions,
    scaled_embedding,
    score_scale,
    sparse_layers,
    t5_feed_forward,
    t5_head,
    width_of_heads,
    window_by_layer,
    window_of_all_layers,
)
from bigtrain.convert.family import Family, Module
from bigtrain.convert.rope_keys import rope, two_ropes


def _same(prefix: str, *ours: str) -> tuple[Module, ...]:
    return tuple(Module(prefix + name, (name,)) for name in ours)


_ATTENTION = _same(
    "model.",
    "layers.{}.self_attn.q_proj",
    "layers.{}.self_attn.k_proj",
    "layers.{}.self_attn.v_proj",
    "layers.{}.self_attn.o_proj",
    "layers.{}.self_attn.q_norm",
    "layers.{}.self_attn.k_norm",
)
_FEED_FORWARD = _same("model.", "layers.{}.mlp.gate_proj", "layers.{}.mlp.up_proj", "layers.{}.mlp.down_proj")
_EMBEDDING = _same("model.", "embed_tokens")
_ENDS = (*_same("model.", "norm"), *_same("", "lm_head"))
_PRE_NORMS = _same("model.", "layers.{}.input_layernorm", "layers.{}.post_attention_layernorm")


def _norm(theirs: str, ours: str) -> Module:
    return Module(f"model.layers.{{}}.{theirs}", (f"layers.{{}}.{ours}",))


def _experts(gate: str, experts: str, *names: str) -> tuple[Module, ...]:
    ours = ("gate_proj", "up_proj", "down_proj")
    return (
        Module(f"model.layers.{{}}.{gate}", ("layers.{}.mlp.router",)),
        *(
            Module(f"model.layers.{{}}.{experts}.{{}}.{theirs}", (f"layers.{{}}.mlp.experts.{name}",), "experts")
            for name, theirs in zip(ours, names, strict=True)
        ),
    )


_LLAMA_MODULES = (*_EMBEDDING, *_PRE_NORMS, *_ATTENTION, *_FEED_FORWARD, *_ENDS)
_SANDWICH = (
    _norm("input_layernorm", "input_layernorm"),
    _norm("post_attention_layernorm", "attention_output_norm"),
    _norm("pre_feedforward_layernorm", "post_attention_layernorm"),
    _norm("post_feedforward_layernorm", "mlp_output_norm"),
)
_MIXTRAL_EXPERTS = _experts("block_sparse_moe.gate", "block_sparse_moe.experts", "w1", "w3", "w2")
_QWEN_EXPERTS = _experts("mlp.gate", "mlp.experts", "gate_proj", "up_proj", "down_proj")
_SELF, _CROSS = "layers.{}.self_attn.", "transformer.h.{}."
_QUERY_KEY_VALUE = (_SELF + "q_proj", _SELF + "k_proj", _SELF + "v_proj")

_BIASES = key("attention_bias", "attention_bias", "attention_output_bias", default=False)
_ALL = (key("vocab_size"), key("initializer_range", default=0.02))


def _shape(
    *, key_value_heads: Any = REQUIRED, head_dim: Any = None, inside: tuple[str, ...] = ("intermediate_size",)
) -> tuple[Keys, ...]:
    """Keys of all but gpt2 and gpt_neox.

    Args:
        key_value_heads: None where they may be left out.
        head_dim: REQUIRED where it may not.
        inside: the settings that `intermediate_size` is.
    """
    return (
        *_ALL,
        *(key(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")),
        key("intermediate_size", *inside),
        key("num_key_value_heads", default=key_value_heads),
        key("head_dim", default=head_dim),
        key("max_position_embeddings"),
    )


def _rms(eps: float = 1e-6) -> tuple[Keys, ...]:
    return (
        key("rms_norm_eps", "norm_eps", default=eps),
        key("tie_word_embeddings", default=False),
        activation("hidden_act", default="silu"),
    )


def _four_widths(config: Mapping[str, Any]) -> Any:
    return 4 * config[next(name for name in ("n_embd", "hidden_size") if name in config)]


_TANH = "gelu_pytorch_tanh"
_QWEN_ONLY = {"use_mrope": (False,)}
_CAUSAL = {"use_bidirectional_attention": (None, False)}
_AUX_LOSS = key("router_aux_loss_coef", default=0.001)

_AT, _OUT = "encoder.layer.{}.attention.", "encoder.layer.{}.output."
_BERT_BLOCK = (
    ("embeddings.word_embeddings", "embed_tokens"),
    ("embeddings.position_embeddings", "embed_positions"),
    ("embeddings.token_type_embeddings", "embed_token_types"),
    ("embeddings.LayerNorm", "embed_norm"),
    (_AT + "self.query", _SELF + "q_proj"),
    (_AT + "self.key", _SELF + "k_proj"),
    (_AT + "self.value", _SELF + "v_proj"),
    (_AT + "output.dense", _SELF + "o_proj"),
    (_AT + "output.LayerNorm", "layers.{}.attention_output_norm"),
    ("encoder.layer.{}.intermediate.dense", "layers.{}.mlp.up_proj"),
    (_OUT + "dense", "layers.{}.mlp.down_proj"),
    (_OUT + "LayerNorm", "layers.{}.mlp_output_norm"),
)
_GROUP = "encoder.albert_layer_groups.{}.albert_layers.0."
_ALBERT_BLOCK = (
    *_BERT_BLOCK[:4],
    ("encoder.embedding_hidden_mapping_in", "embed_projection"),
    (_GROUP + "attention.query", _SELF + "q_proj"),
    (_GROUP + "attention.key", _SELF + "k_proj"),
    (_GROUP + "attention.value", _SELF + "v_proj"),
    (_GROUP + "attention.dense", _SELF + "o_proj"),
    (_GROUP + "attention.LayerNorm", "layers.{}.attention_output_norm"),
    (_GROUP + "ffn", "layers.{}.mlp.up_proj"),
    (_GROUP + "ffn_output", "layers.{}.mlp.down_proj"),
    (_GROUP + "full_layer_layer_norm", "layers.{}.mlp_output_norm"),
)
_LAYER = "model.layers.{}."

_T5_ENCODER, _T5_DECODER = "encoder.block.{}.layer.", "decoder.block.{}.layer."


def _t5_layers(theirs: str, ours: str, feed_forward: int) -> tuple[Module, ...]:
    """The blocks of one half of a T5; in the decoder the feed-forward layer is the third part."""

    def attention(number: int, name: str, module: str, norm: str) -> tuple[Module, ...]:
        return (
            *(Module(f"{theirs}{number}.{name}.{part}", (f"{ours}{module}.{part}_proj",)) for part in "qkvo"),
            Module(f"{theirs}{number}.layer_norm", (ours + norm,)),
        )

    cross = attention(1, "EncDecAttention", "cross_attn", "cross_attention_layernorm") if feed_forward == 2 else ()
    dense = f"{theirs}{feed_forward}.DenseReluDense."
    return (
        *attention(0, "SelfAttention", "self_attn", "input_layernorm"),
        *cross,
        Module(dense + "wi", (ours + "mlp.up_proj",), gated=False),
        Module(dense + "wi_0", (ours + "mlp.gate_proj",), gated=True),
        Module(dense + "wi_1", (ours + "mlp.up_proj",), gated=True),
        Module(dense + "wo", (ours + "mlp.down_proj",)),
        Module(f"{theirs}{feed_forward}.layer_norm", (ours + "post_attention_layernorm",)),
    )


_T5_BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias"
_T5_MODULES = (
    Module("shared", ("embed_tokens",)),
    Module("encoder." + _T5_BIAS, ("encoder.relative_attention_bias",)),
    *_t5_layers(_T5_ENCODER, "encoder.layers.{}.", 1),
    Module("encoder.final_layer_norm", ("encoder.norm",)),
    Module("decoder." + _T5_BIAS, ("relative_attention_bias",)),
    *_t5_layers(_T5_DECODER, "layers.{}.", 2),
    Module("decoder.final_layer_norm", ("norm",)),
    Module("lm_head", ("lm_head",)),
)


def _prefixed(prefix: str, names: tuple[tuple[str, str], ...]) -> tuple[Module, ...]:
    return tuple(Module(prefix + theirs, (ours,)) for theirs, ours in names)


def _of_bert(eps: float = 1e-12, act: str = "gelu") -> tuple[Keys, ...]:
    return (
        *_ALL,
        *(key(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")),
        key("type_vocab_size", default=2),
        key("layer_norm_eps", "norm_eps", default=eps),
        activation("hidden_act", default=act),
    )


_ENCODES = {"is_decoder": (False,), "is_causal": (False,)}
_BERT_ONLY = {**_ENCODES, "tie_word_embeddings": (True,), "position_embedding_type": ("absolute",)}
_BERT_NOISE = frozenset({"hidden_dropout_prob", "attention_probs_dropout_prob"})
_BERT_BUFFERS = r"embeddings\.(position|token_type)_ids$"
_OLDER_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def _tied_head(decoder: str, bias: str) -> Mapping[str, str]:
    """The head as the embedding and a bias, where files may hold it as a layer of its own, too."""
    return {f"{decoder}.weight": f"{bias}.weight", f"{decoder}.bias": f"{bias}.bias"}


_T5 = Family(
    "T5ForConditionalGeneration",
    (
        fixed("is_encoder_decoder", True),
        key("vocab_size"),
        key("d_model", "hidden_size"),
        key("num_layers", "num_hidden_layers"),
        key("num_decoder_layers", default=None),
        key("num_heads", "num_attention_heads"),
        key("d_kv", "head_dim", default=64),
        key("d_ff", "intermediate_size"),
        key("n_positions", "max_position_embeddings", default=512),
        key("relative_attention_num_buckets", default=32),
        key("relative_attention_max_distance", default=128),
        key("layer_norm_epsilon", "norm_eps", default=1e-6),
        t5_feed_forward(),
        t5_head(),
    ),
    _T5_MODULES,
    only={"is_encoder_decoder": (True,)},
    training_only=frozenset({"dropout_rate"}),
    idle=frozenset({"classifier_dropout"}),
    prefix="",
    # The first releases gave cross-attention a bias, which nothing reads.
    buffers=r"^(transformer\.)?decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
    renamed={f"{half}.embed_tokens.weight": "shared.weight" for half in ("encoder", "decoder")},
    model_type="t5",
    heads=task_heads.T5,
)


def _bart_layers(theirs: str, ours: str, *, cross: bool) -> tuple[Module, ...]:
    """The blocks of one half of a BART."""

    def attention(name: str, module: str, norm: str) -> tuple[Module, ...]:
        parts = {"k_proj": "k_proj", "v_proj": "v_proj", "q_proj": "q_proj", "out_proj": "o_proj"}
        return (
            *(Module(f"{theirs}{name}.{their}", (f"{ours}{module}.{our}",)) for their, our in parts.items()),
            Module(f"{theirs}{name}_layer_norm", (ours + norm,)),
        )

    return (
        *attention("self_attn", "self_attn", "attention_output_norm"),
        *(attention("encoder_attn", "cross_attn", "cross_attention_output_norm") if cross else ()),
        Module(theirs + "fc1", (ours + "mlp.up_proj",)),
        Module(theirs + "fc2", (ours + "mlp.down_proj",)),
        Module(theirs + "final_layer_norm", (ours + "mlp_output_norm",)),
    )


_XLNET_LAYER = "transformer.layer.{}."


def _xlnet_attention() -> tuple[Module, ...]:
    """The tensors of attention of an XLNet, which are no modules there."""
    theirs = _XLNET_LAYER + "rel_attn."
    others = {
        "r_w_bias": "content_bias",
        "r_r_bias": "distance_bias",
        "r_s_bias": "segment_bias",
        "seg_embed": "segments",
    }
    return (
        *(Module(theirs + name, (f"{_SELF}{name}_proj.weight",), "heads_last_transposed") for name in "qkv"),
        Module(theirs + "o", (_SELF + "o_proj.weight",), "heads_last"),
        Module(theirs + "r", (_SELF + "r_proj.weight",), "heads_last_transposed"),
        *(Module(theirs + their, (_SELF + our,), "heads_last") for their, our in others.items()),
        Module(theirs + "layer_norm", ("layers.{}.attention_output_norm",)),
    )


_BART_EMBEDDINGS = ("embed_positions", "embed_positions"), ("layernorm_embedding", "embed_norm")
_BART_MODULES = (
    Module("model.shared", ("embed_tokens",)),
    *_prefixed("model.encoder.", tuple((theirs, f"encoder.{ours}") for theirs, ours in _BART_EMBEDDINGS)),
    *_bart_layers("model.encoder.layers.{}.", "encoder.layers.{}.", cross=False),
    *_prefixed("model.decoder.", _BART_EMBEDDINGS),
    *_bart_layers("model.decoder.layers.{}.", "layers.{}.", cross=True),
    Module("final_logits_bias", ("lm_head.bias",), "row"),
)
_BART_KEYS = (
    fixed("is_encoder_decoder", True),
    key("vocab_size"),
    key("init_std", "initializer_range", default=0.02),
    key("d_model", "hidden_size"),
    key("encoder_layers", "num_hidden_layers"),
    key("decoder_layers", "num_decoder_layers"),
    in_both("attention_heads", "num_attention_heads"),
    in_both("ffn_dim", "intermediate_size"),
    key("max_position_embeddings", default=1024),
    activation("activation_function", default="gelu"),
    scaled_embedding(),
)
_BART_NOISE = frozenset({
    "dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop",
})  # fmt: skip
_BART_ONLY: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (True,), "tie_word_embeddings": (True,), "normalize_before": (False,),
    "add_final_layer_norm": (False,), "add_bias_logits": (False,),
}  # fmt: skip
_BART_IDLE = frozenset({
    "classifier_dropout", "classif_dropout", "extra_pos_embeddings", "force_bos_token_to_be_generated", "save_step",
})  # fmt: skip
_BART_TIED = dict.fromkeys(
    ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"), "model.shared.weight"
)

_OF_TEXTS = ("sequence_classification",)
_OF_TEXTS_AND_TOKENS = (*_OF_TEXTS, "token_classification")
_ANSWERS = ("model.", "transformer.")
"""transformers keeps an old name for the model inside these classes."""

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        (*_shape(key_value_heads=None), *_rms(), rope(), _BIASES, key("mlp_bias", default=False)),
        _LLAMA_MODULES,
        idle=frozenset({"pretraining_tp"}),  # the same sums in another order
        heads=task_heads.of_decoder("Llama", answers_start=_ANSWERS),
        whole_heads=True,
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        (
            *_ALL,
            # transformers takes the names of the other families too
            key("n_embd", "hidden_size", also=("hidden_size",)),
            key("n_layer", "num_hidden_layers", also=("num_hidden_layers",)),
            key("n_head", "num_attention_heads", also=("num_attention_heads",)),
            key("n_positions", "max_position_embeddings", also=("max_position_embeddings",)),
            key("n_inner", "intermediate_size", default=None, null_means=_four_widths),
            key("layer_norm_epsilon", "norm_eps", default=1e-5),
            key("tie_word_embeddings", default=True),
            activation("activation_function", default="gelu_new", write_as={_TANH: "gelu_new"}),
        ),
        (
            Module("transformer.wte", ("embed_tokens",)),
            Module("transformer.wpe", ("embed_positions",)),
            Module(_CROSS + "ln_1", ("layers.{}.input_layernorm",)),
            Module(_CROSS + "attn.c_attn", _QUERY_KEY_VALUE, "conv1d"),
            Module(_CROSS + "attn.c_proj", (_SELF + "o_proj",), "conv1d"),
            Module(_CROSS + "ln_2", ("layers.{}.post_attention_layernorm",)),
            Module(_CROSS + "mlp.c_fc", ("layers.{}.mlp.up_proj",), "conv1d"),
            Module(_CROSS + "mlp.c_proj", ("layers.{}.mlp.down_proj",), "conv1d"),
            Module("transformer.ln_f", ("norm",)),
            *_same("", "lm_head"),
        ),
        only={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)},
        same_as={"n_ctx": "n_positions"},
        training_only=frozenset({"attn_pdrop", "resid_pdrop", "embd_pdrop"}),
        idle=frozenset({
            "reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation",
            "summary_proj_to_labels", "summary_first_dropout",
        }),
        prefix="transformer.",
        buffers=r"\.attn\.(masked_)?bias$",
        heads=task_heads.of_decoder("GPT2", classifier="classifier"),
        whole_heads=True,
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        (
            *_ALL,
            *(key(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")),
            key("max_position_embeddings"),
            key("layer_norm_eps", "norm_eps", default=1e-5),
            key("tie_word_embeddings", default=False),
            activation("hidden_act", default="gelu"),
            key("use_parallel_residual", "parallel_residual", default=True),
            key("attention_bias", "attention_bias", "attention_output_bias", default=True),
            rope(partial=True),
        ),
        (
            Module("gpt_neox.embed_in", ("embed_tokens",)),
            Module("gpt_neox.layers.{}.input_layernorm", ("layers.{}.input_layernorm",)),
            Module("gpt_neox.layers.{}.post_attention_layernorm", ("layers.{}.post_attention_layernorm",)),
            Module("gpt_neox.layers.{}.attention.query_key_value", _QUERY_KEY_VALUE, "by_head"),
            Module("gpt_neox.layers.{}.attention.dense", (_SELF + "o_proj",)),
            Module("gpt_neox.layers.{}.mlp.dense_h_to_4h", ("layers.{}.mlp.up_proj",)),
            Module("gpt_neox.layers.{}.mlp.dense_4h_to_h", ("layers.{}.mlp.down_proj",)),
            Module("gpt_neox.final_layer_norm", ("norm",)),
            Module("embed_out", ("lm_head",)),
        ),
        training_only=frozenset({"attention_dropout", "hidden_dropout", "classifier_dropout"}),
        prefix="gpt_neox.",
        buffers=r"attention\.((masked_)?bias|rotary_emb\.inv_freq)$",
        renamed={"lm_head.weight": "embed_out.weight"},
        heads=task_heads.of_decoder("GPTNeoX", classifier="classifier"),
        whole_heads=True,
    ),
    "mistral": Family(
        "MistralForCausalLM",
        (*_shape(), *_rms(), rope(), window_of_all_layers(default=4096)),
        _LLAMA_MODULES,
        heads=task_heads.of_decoder("Mistral"),
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        (*_shape(), *_rms(), rope(), window_by_layer(alternating=False)),
        _LLAMA_MODULES,
        heads=task_heads.of_decoder("Qwen2", answers_start=_ANSWERS),
        only=_QWEN_ONLY,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        (*_shape(head_dim=REQUIRED), *_rms(), rope(), _BIASES, window_by_layer(alternating=False)),
        _LLAMA_MODULES,
        heads=task_heads.of_decoder("Qwen3", answers_start=_ANSWERS),
        only=_QWEN_ONLY,
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        (*_shape(key_value_heads=None), *_rms(1e-5), rope(), _BIASES),
        (
            *_EMBEDDING,
            *_ATTENTION,
            _norm("post_attention_layernorm", "attention_output_norm"),
            *_FEED_FORWARD,
            _norm("post_feedforward_layernorm", "mlp_output_norm"),
            *_ENDS,
        ),
        heads=task_heads.of_decoder("Olmo2", _OF_TEXTS),
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        (
            *_shape(head_dim=REQUIRED),
            key("rms_norm_eps", "norm_eps", default=1e-6),
            key("tie_word_embeddings", default=True),
            # the first releases say gelu and mean its approximation
            activation("hidden_act", default=_TANH, read_as={"gelu": _TANH}),
            rope(),
            _BIASES,
        ),
        _LLAMA_MODULES,
        only={**_CAUSAL, "hidden_activation": (None, _TANH)},
        heads=task_heads.of_decoder("Gemma", _OF_TEXTS_AND_TOKENS),
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        (
            *_shape(head_dim=REQUIRED),
            key("rms_norm_eps", "norm_eps", default=1e-6),
            key("tie_word_embeddings", default=True),
            activation("hidden_activation", default=_TANH),
            rope(),
            _BIASES,
            window_by_layer(alternating=True),
            score_scale(),
            key("attn_logit_softcapping", default=50.0),
            key("final_logit_softcapping", default=30.0),
        ),
        (*_EMBEDDING, *_SANDWICH, *_ATTENTION, *_FEED_FORWARD, *_ENDS),
        only=_CAUSAL,
        same_as={"sliding_window_size": "sliding_window"},
        heads=task_heads.of_decoder("Gemma2", _OF_TEXTS_AND_TOKENS),
        idle=frozenset({"cache_implementation", "hidden_act"}),
        whole_heads=True,
    ),
    "granite": Family(
        "GraniteForCausalLM",
        (
            *_shape(key_value_heads=None),
            *_rms(),
            rope(),
            _BIASES,
            key("mlp_bias", default=False),
            key("attention_multiplier", default=1.0),
            key("embedding_multiplier", default=1.0),
            key("residual_multiplier", default=1.0),
            key("logits_scaling", default=1.0),
        ),
        _LLAMA_MODULES,
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        (
            *_shape(inside=("moe_intermediate_size", "intermediate_size")),
            *_rms(1e-5),
            rope(default_theta=1e6),
            window_of_all_layers(default=None),
            key("num_local_experts", "num_experts", default=8, also=("num_experts",)),
            key("num_experts_per_tok", default=2),
            _AUX_LOSS,
        ),
        (*_EMBEDDING, *_PRE_NORMS, *_ATTENTION, *_MIXTRAL_EXPERTS, *_ENDS),
        training_only=frozenset({"attention_dropout", "router_jitter_noise"}),
        heads=task_heads.of_decoder("Mixtral"),
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        (
            *_shape(),
            *_rms(),
            rope(),
            _BIASES,
            window_of_all_layers(default=4096, switch=True),
            sparse_layers(),
            key("num_experts", default=128, also=("num_local_experts",)),
            key("num_experts_per_tok", default=8),
            key("moe_intermediate_size", default=768),
            key("norm_topk_prob", default=False),
            _AUX_LOSS,
        ),
        (*_EMBEDDING, *_PRE_NORMS, *_ATTENTION, *_QWEN_EXPERTS, *_FEED_FORWARD, *_ENDS),
        heads=task_heads.of_decoder("Qwen3Moe", answers_start=_ANSWERS),
    ),
    "bert": Family(
        "BertForMaskedLM",
        (*_of_bert(), key("max_position_embeddings")),
        (
            *_prefixed("bert.", _BERT_BLOCK),
            Module("cls.predictions.transform.dense", ("lm_head.dense",)),
            Module("cls.predictions.transform.LayerNorm", ("lm_head.norm",)),
            Module("bert.pooler.dense", ("sentence_head.dense",)),
            Module("cls.seq_relationship", ("sentence_head.classifier",)),
            Module("cls.predictions", ("lm_head",)),
        ),
        only=_BERT_ONLY,
        training_only=_BERT_NOISE,
        idle=frozenset({
            "classifier_dropout", "directionality", "pooler_fc_size", "pooler_num_attention_heads",
            "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type",
        }),
        prefix="bert.",
        buffers=_BERT_BUFFERS,
        renamed=_tied_head("cls.predictions.decoder", "cls.predictions"),
        older_ends=_OLDER_NORM,
        other_heads=r"^(bert\.)?pooler\.|^cls\.seq_relationship\.",
        heads=task_heads.of_pooled("Bert", "bert.pooler.dense", "classifier_dropout"),
        whole_heads=True,
    ),
    "roberta": Family(
        "RobertaForMaskedLM",
        (*_of_bert(), offset_positions()),
        (
            *_prefixed("roberta.", _BERT_BLOCK),
            Module("lm_head.dense", ("lm_head.dense",)),
            Module("lm_head.layer_norm", ("lm_head.norm",)),
            Module("lm_head", ("lm_head",)),
        ),
        only=_BERT_ONLY,
        training_only=_BERT_NOISE,
        idle=frozenset({"classifier_dropout"}),
        prefix="roberta.",
        buffers=_BERT_BUFFERS,
        renamed=_tied_head("lm_head.decoder", "lm_head"),
        older_ends=_OLDER_NORM,
        other_heads=r"^(roberta\.)?pooler\.",
        heads=task_heads.ROBERTA,
        whole_heads=True,
    ),
    "albert": Family(
        "AlbertForMaskedLM",
        (
            *_of_bert(act="gelu_new"),
            key("max_position_embeddings"),
            key("embedding_size", default=128),
            key("num_hidden_groups", default=1),
        ),
        (
            *_prefixed("albert.", _ALBERT_BLOCK),
            Module("predictions.dense", ("lm_head.dense",)),
            Module("predictions.LayerNorm", ("lm_head.norm",)),
            Module("albert.pooler", ("sentence_head.dense",)),
            Module("sop_classifier.classifier", ("sentence_head.classifier",)),
            Module("predictions", ("lm_head",)),
        ),
        only={**_BERT_ONLY, "inner_group_num": (1,)},
        training_only=_BERT_NOISE,
        idle=frozenset({
            "classifier_dropout_prob", "down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks",
        }),
        prefix="albert.",
        buffers=_BERT_BUFFERS,
        renamed=_tied_head("predictions.decoder", "predictions"),
        other_heads=r"^(albert\.)?pooler\.|^sop_classifier\.",
        heads=task_heads.of_pooled("Albert", "albert.pooler", "classifier_dropout_prob"),
        whole_heads=True,
    ),
    "modernbert": Family(
        "ModernBertForMaskedLM",
        (
            *_ALL,
            *(key(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")),
            key("max_position_embeddings"),
            key("norm_eps", default=1e-5),
            key("norm_bias", default=False),
            key("tie_word_embeddings", default=True),
            activation("hidden_activation", default="gelu"),
            _BIASES,
            key("mlp_bias", default=False),
            local_attention(),
            two_ropes(global_theta=160000.0, local_theta=10000.0),
            key("decoder_bias", "head_bias", default=True),
            key("classifier_bias", "head_transform_bias", default=False),
            head_activation("classifier_activation", default="gelu"),
        ),
        (
            Module("model.embeddings.tok_embeddings", ("embed_tokens",)),
            Module("model.embeddings.norm", ("embed_norm",)),
            Module(_LAYER + "attn_norm", ("layers.{}.input_layernorm",)),
            Module(_LAYER + "attn.Wqkv", _QUERY_KEY_VALUE),
            Module(_LAYER + "attn.Wo", (_SELF + "o_proj",)),
            Module(_LAYER + "mlp_norm", ("layers.{}.post_attention_layernorm",)),
            Module(_LAYER + "mlp.Wi", ("layers.{}.mlp.gate_proj", "layers.{}.mlp.up_proj")),
            Module(_LAYER + "mlp.Wo", ("layers.{}.mlp.down_proj",)),
            Module("model.final_norm", ("norm",)),
            Module("head.dense", ("lm_head.dense",)),
            Module("head.norm", ("lm_head.norm",)),
            Module("decoder", ("lm_head",)),
        ),
        only=_ENCODES,
        training_only=frozenset({"attention_dropout", "embedding_dropout", "mlp_dropout"}),
        idle=frozenset({
            "classifier_dropout", "classifier_pooling", "deterministic_flash_attn",
            "initializer_cutoff_factor", "layer_norm_eps", "position_embedding_type", "reference_compile",
            "repad_logits_with_grad", "sparse_pred_ignore_index", "sparse_prediction",
        }),
        token_ids=frozenset({"cls_token_id", "sep_token_id"}),
        heads=task_heads.MODERNBERT,
        whole_heads=True,
    ),
    "t5": _T5,
    "t5_v1_1": _T5,
    "bart": Family(
        "BartForConditionalGeneration",
        _BART_KEYS,
        _BART_MODULES,
        only={**_BART_ONLY, "normalize_embedding": (True,), "static_position_embeddings": (False,)},
        heads=task_heads.BART,
        same_as={"num_hidden_layers": "encoder_layers"},
        training_only=_BART_NOISE,
        idle=_BART_IDLE,
        renamed=_BART_TIED,
        whole_heads=True,
    ),
    "marian": Family(
        "MarianMTModel",
        _BART_KEYS,
        _BART_MODULES,
        only={
            **_BART_ONLY,
            "normalize_embedding": (False,),
            "static_position_embeddings": (True,),
            "share_encoder_decoder_embeddings": (True,),
        },
        same_as={"num_hidden_layers": "encoder_layers", "decoder_vocab_size": "vocab_size"},
        training_only=_BART_NOISE,
        idle=_BART_IDLE,
        buffers=r"embed_positions\.weight$",
        renamed=_BART_TIED,
        whole_heads=True,
    ),
    "xlnet": Family(
        "XLNetLMHeadModel",
        (
            *_ALL,
            key("d_model", "hidden_size", also=("hidden_size",)),
            key("n_layer", "num_hidden_layers", also=("num_hidden_layers",)),
            key("n_head", "num_attention_heads", also=("num_attention_heads",)),
            key("d_inner", "intermediate_size"),
            width_of_heads("d_head"),
            key("layer_norm_eps", "norm_eps", default=1e-12),
            activation("ff_activation", default="gelu"),
            no_longest_context(512),
        ),
        (
            Module("transformer.mask_emb", ("mask_embedding.weight",), "row"),
            Module("transformer.word_embedding", ("embed_tokens",)),
            *_xlnet_attention(),
            Module(_XLNET_LAYER + "ff.layer_norm", ("layers.{}.mlp_output_norm",)),
            Module(_XLNET_LAYER + "ff.layer_1", ("layers.{}.mlp.up_proj",)),
            Module(_XLNET_LAYER + "ff.layer_2", ("layers.{}.mlp.down_proj",)),
            Module("lm_loss", ("lm_head",)),
        ),
        only={
            "attn_type": ("bi",), "bi_data": (False,), "clamp_len": (-1,), "same_length": (False,),
            "untie_r": (True,), "tie_word_embeddings": (True,),
        },
        same_as={"n_token": "vocab_size"},
        training_only=frozenset({"dropout"}),
        idle=frozenset({
            "mem_len", "reuse_len", "use_mems_eval", "use_mems_train", "summary_type", "summary_use_proj",
            "summary_activation", "summary_last_dropout", "start_n_top", "end_n_top",
        }),
        prefix="transformer.",
        renamed={"lm_loss.weight": "transformer.word_embedding.weight"},
        heads=task_heads.XLNET,
        whole_heads=True,
    ),
}  # fmt: skip


def family_of(settings: ModelSettings) -> Family:
    """The family of a model with its head.

    Raises:
        BigtrainError: transformers has no class for it.
    """
    name = settings.family
    found = FAMILIES[name].of(settings) if name in FAMILIES else None
    if found is None:
        with_head = "" if settings.task_head == "none" else f" with task_head {settings.task_head}"
        with_head = " with a sentence_head" if settings.sentence_head else with_head
        known = [each.architecture for each in FAMILIES[name].variants()] if name in FAMILIES else []
        raise BigtrainError(
            f"transformers has no class for family {name}{with_head}",
            found=f"model.family {name}{with_head}",
            wanted=", ".join(known) or f"a model of family {', '.join(FAMILIES)}",
            fix="use the run with bigtrain, or train with a family that transformers has such a class of",
        )
    return found

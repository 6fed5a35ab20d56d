"""Export to a GGUF file, which llama.cpp and what is built on it load.

    settings        --Architecture-->  metadata: which of llama.cpp's networks this is, and its numbers
    tokenizer.json  --vocabulary-->    tokens, their kinds, merges, how text is split into words
    weights         --layout-->        llama.cpp's names and order of rows, one tensor in memory at a time

llama.cpp holds one network for each name in its list, with its choices fixed in code. So what is written is refused
unless every choice of the settings is one that the network makes too, or one that it takes from the metadata.
Needs the extra `gguf`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigtrain.base import BigtrainError, __version__, commit_file
from bigtrain.config import ModelSettings
from bigtrain.convert.gguf_vocabulary import add_vocabulary, read_vocabulary
from bigtrain.convert.weights import FOR_TRAINING_ONLY, our_shapes
from bigtrain.data import BeginOfText
from bigtrain.model import attention_factor, effective_theta, original_context, rotary_frequencies

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Types of matrices in a file, by the names that `export --dtype` takes."""

_MARK = "bigtrain.base.version"
"""The key by which a file is known as one of ours, and may be replaced."""


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's networks (src/models/NAME.cpp there), as far as a family of ours can be it."""

    name: str
    takes: frozenset[str]
    """Choices that it takes from the metadata or the tensors. In all others the settings must be the family's."""
    rotates_neighbours: bool = False
    """Rotary pairs are neighbours (2i, 2i + 1), not halves (i, i + D / 2): rows of queries and keys change places."""
    fuses_qkv: bool = False
    """Queries, keys and values are one matrix."""
    square: bool = False
    """Its heads together are as wide as the stream."""
    always_has_output: bool = False
    """It does not know tied embeddings: the matrix is written twice."""
    slides: bool = False
    """It has sliding windows."""


_SHAPE = frozenset({
    "family", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "max_position_embeddings", "tie_word_embeddings", "norm_eps", "rope_theta",
})  # fmt: skip
_OF_TRAINING = frozenset({
    "init_from", "expect_parameters", "initializer_range", "z_loss_coef", "label_smoothing",
    "num_nextn_predict_layers", "mtp_loss_coef", "router_aux_loss_coef", "router_z_loss_coef",
})  # fmt: skip
_WINDOWS = frozenset({"sliding_window", "layer_types"})
_BIASES = frozenset({"attention_bias", "attention_output_bias", "mlp_bias"})
_EXPERTS = frozenset({"num_experts", "num_experts_per_tok", "moe_intermediate_size"})
_ROPE = frozenset({"rope_scaling"})
_SCALES = frozenset({
    "embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier", "mup_base_hidden_size",
})  # fmt: skip

_LLAMA = Architecture("llama", _ROPE | _BIASES | _EXPERTS, rotates_neighbours=True)
_GRANITE = Architecture("granite", _ROPE | _BIASES | _SCALES, rotates_neighbours=True)
_CAPS = frozenset({"attn_logit_softcapping", "final_logit_softcapping"})
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "granite": _GRANITE,
    "gpt2": Architecture("gpt2", frozenset(), fuses_qkv=True, square=True),
    "gpt_neox": Architecture(
        "gptneox", _ROPE | {"parallel_residual", "partial_rotary_factor"}, fuses_qkv=True, square=True,
        always_has_output=True,
    ),
    "qwen2": Architecture("qwen2", _ROPE | {"attention_bias"}, square=True),
    "qwen3": Architecture("qwen3", _ROPE),
    "qwen3_moe": Architecture("qwen3moe", _ROPE | _EXPERTS),
    "olmo2": Architecture("olmo2", _ROPE, square=True, always_has_output=True),
    "gemma": Architecture("gemma", _ROPE),
    "gemma2": Architecture("gemma2", _ROPE | _CAPS, slides=True),
}  # fmt: skip
"""By family. Each is verified against llama.cpp by the tests."""


def architecture_of(settings: ModelSettings) -> Architecture:
    """The network of llama.cpp that computes what these settings say. Raises BigtrainError where there is none."""
    architecture = ARCHITECTURES.get(settings.family)
    if architecture is None:
        raise BigtrainError(
            f"models of family {settings.family} are not exported to GGUF",
            found=settings.family,
            wanted=f"one of {', '.join(ARCHITECTURES)}",
            fix="export to the Hugging Face format: --to hf",
        )
    plain = ModelSettings.model_validate(_shape_of(settings) | {"family": settings.family})
    if architecture is _LLAMA and any(getattr(settings, key) != getattr(plain, key) for key in _SCALES):
        architecture = _GRANITE  # the same network, with what multiplies what
    for key in sorted(ModelSettings.model_fields.keys() - _SHAPE - _OF_TRAINING - _WINDOWS):
        found, family = getattr(settings, key), getattr(plain, key)
        if found != family and (key not in architecture.takes or found is None):
            raise _unknown(f"llama.cpp's {architecture.name} cannot have this model.{key}", found, family)
    _check_particulars(settings, architecture)
    return architecture


def _shape_of(settings: ModelSettings) -> dict[str, Any]:
    shape = {key: getattr(settings, key) for key in _SHAPE - {"family", "tie_word_embeddings"}}
    if settings.family.startswith("gemma"):  # its output head is always the embedding
        return shape
    return shape | {"tie_word_embeddings": settings.tie_word_embeddings}


def _check_particulars(settings: ModelSettings, architecture: Architecture) -> None:
    """What cannot be said choice by choice."""
    name = architecture.name
    width = settings.num_attention_heads * settings.head_width
    if architecture.square and width != settings.hidden_size:
        raise _unknown(f"llama.cpp's {name} has heads that are together as wide as hidden_size", width,
                       settings.hidden_size)  # fmt: skip
    if name.startswith("gemma") and not settings.tie_word_embeddings:
        raise _unknown(f"llama.cpp's {name} has no output head of its own: model.tie_word_embeddings", False, True)
    scaling = settings.rope_scaling
    if scaling is not None and scaling.rope_type == "llama3" and not architecture.rotates_neighbours:
        raise _unknown(f"llama.cpp's {name} cannot have this model.rope_scaling.rope_type", "llama3",
                       "linear, ntk or yarn")  # fmt: skip
    if name == "gemma2" and settings.num_hidden_layers == 46:  # it takes 46 layers for Google's 27B
        wanted = (settings.hidden_size // settings.num_attention_heads) ** -0.5
        if abs(settings.attention_scale / wanted - 1) > 1e-6:
            raise _unknown("llama.cpp's gemma2 of 46 layers has its own model.attention_multiplier",
                           settings.attention_scale, wanted)  # fmt: skip


def _unknown(what: str, found: object, wanted: object) -> BigtrainError:
    return BigtrainError(what, found=found, wanted=wanted, fix="export to the Hugging Face format: --to hf")


def context_length(settings: ModelSettings) -> int:
    """Tokens up to which llama.cpp computes what we compute: where it has no sliding windows, the smallest of ours."""
    if architecture_of(settings).slides:
        return settings.max_position_embeddings
    windows = [settings.window_of(layer) for layer in range(settings.num_hidden_layers)]
    return min(settings.max_position_embeddings, *(window for window in windows if window is not None), 1 << 31)


def export_gguf(
    weights: Mapping[str, Tensor],
    settings: ModelSettings,
    tokenizer_file: Path,
    out: Path,
    *,
    end_of_text: str,
    begin_of_text: BeginOfText | None = None,
    dtype: torch.dtype = torch.bfloat16,
    name: str = "bigtrain",
) -> None:
    """Write the file under a temporary name, then move it to `out` in one step.

    Args:
        weights: whole parameters by the names of `Transformer.named_parameters()`; each is asked for once, when it is
            written.
        settings: the model's shape.
        tokenizer_file: a `tokenizer.json`.
        out: the file to make. An earlier export there is replaced.
        end_of_text: the token that ends a document; it is the file's end-of-sequence token.
        begin_of_text: what documents begin with. Default: what the tokenizer puts before a text.
        dtype: of the matrices written. Vectors are rounded to it, too, and stored in float32, as llama.cpp has them.
        name: of the model, for people.

    Raises:
        BigtrainError: `out` is something else, llama.cpp has no such network or tokenizer, or the weights are not
            those of the settings.
    """
    gguf = require_gguf()
    refuse_foreign_file(out)
    architecture = architecture_of(settings)
    vocabulary = read_vocabulary(tokenizer_file, end_of_text, settings.vocab_size, begin_of_text)
    shapes = our_shapes(settings)
    _check_weights(weights, shapes, settings)
    layout = list(_layout(shapes, architecture, settings))

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    writer = gguf.GGUFWriter(partial, architecture.name)
    try:
        writer.add_name(name)
        writer.add_string(_MARK, __version__)
        writer.add_file_type({torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}[dtype])
        _add_settings(writer, settings, architecture)
        add_vocabulary(writer, vocabulary)
        for part in layout:
            part.announce(writer, shapes, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for part in layout:
            writer.write_tensor_data(part.read(weights, shapes, dtype))
        writer.flush()
    except BaseException as error:
        with suppress(OSError):
            writer.close()
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            error.filename = str(out)  # a full disk names no file
        raise
    writer.close()
    with partial.open("rb") as file:
        commit_file(file, out)


def require_gguf() -> Any:
    """The package gguf. Raises BigtrainError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise BigtrainError(
            "the package gguf is not installed; it writes GGUF files", fix="pip install 'bigtrain[gguf]'"
        ) from None
    return gguf


def refuse_foreign_file(out: Path) -> None:
    """Nothing but an earlier export is overwritten. Raises BigtrainError."""
    if out.is_symlink():
        raise BigtrainError(
            f"{out} is a symbolic link; nothing was overwritten",
            found=f"a link to {out.readlink()}",
            fix="give the file that it points to, or another name",
        )
    if not out.exists():
        return
    try:
        known = _MARK in require_gguf().GGUFReader(out).fields
    except (ValueError, OSError, IndexError):
        known = False
    if not known:
        raise BigtrainError(
            f"{out} is something that bigtrain did not export; nothing was overwritten", fix="choose another name"
        )


@dataclass(frozen=True)
class _Part:
    """One tensor of the file, and what it is made of."""

    name: str
    ours: tuple[str, ...]
    """Concatenated along dimension 0."""
    heads: tuple[int, ...] = ()
    """Of each of ours, how many heads' rows go from halves to neighbours; 0: none."""
    plus_one: bool = False
    """A zero-centred norm's scale."""
    value: Tensor | None = field(default=None, compare=False)
    """The tensor itself, where it is none of the weights."""

    def announce(self, writer: Any, shapes: Mapping[str, torch.Size], dtype: torch.dtype) -> None:
        """Announce name, shape and type to the writer."""
        gguf = require_gguf()
        parts = [shapes[key] for key in self.ours] if self.value is None else [self.value.shape]
        shape = torch.Size([sum(part[0] for part in parts), *parts[0][1:]])
        stored = self._stored(shape, dtype)
        kind = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[stored]
        raw = gguf.GGMLQuantizationType[kind]
        size = shape.numel() * stored.itemsize
        writer.add_tensor_info(self.name, shape, np.dtype(np.float32), size, raw_dtype=raw)

    def read(
        self, weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], dtype: torch.dtype
    ) -> np.ndarray[Any, Any]:
        """The tensor as bytes in the file. Raises BigtrainError where a weight has another shape."""
        if self.value is not None:
            return self.value.float().numpy()
        heads = self.heads or (0,) * len(self.ours)
        parts = [
            _neighbours(_read(weights, key, shapes[key]).to(dtype), n) for key, n in zip(self.ours, heads, strict=True)
        ]
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.plus_one:
            joined = joined.float() + 1
        joined = joined.to(self._stored(joined.shape, dtype)).contiguous()
        return (joined.view(torch.int16) if joined.dtype == torch.bfloat16 else joined).numpy()

    def _stored(self, shape: torch.Size, dtype: torch.dtype) -> torch.dtype:
        small = len(shape) == 1 or self.name.endswith(("ffn_gate_inp.weight", "position_embd.weight"))
        return torch.float32 if small else dtype


_NAMES = {
    "embed_tokens.weight": "token_embd.weight",
    "embed_positions.weight": "position_embd.weight",
    "norm": "output_norm",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "attention_output_norm": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp_output_norm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps.weight",
    "mlp.experts.up_proj": "ffn_up_exps.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}
"""Our names to theirs, without the prefix of the layer and, in part, without the suffix `.weight` or `.bias`."""


def _layout(shapes: Mapping[str, torch.Size], architecture: Architecture, settings: ModelSettings) -> Iterator[_Part]:
    """Every tensor of the file, in order."""
    turned = {"q": settings.num_attention_heads, "k": settings.key_value_heads, "v": 0}
    heads = turned if architecture.rotates_neighbours else dict.fromkeys(turned, 0)
    if (factors := _rope_factors(settings)) is not None:
        yield _Part("rope_freqs.weight", (), value=factors)
    for ours in shapes:
        of_attention = ours.partition(".self_attn.")[2]
        if architecture.fuses_qkv and of_attention[1:7] == "_proj." and of_attention[0] in "qkv":
            if of_attention[0] == "q":
                parts = tuple(ours.replace("q_proj", f"{which}_proj") for which in "qkv")
                yield _Part(_theirs(ours).replace("attn_q", "attn_qkv"), parts)
            continue
        turning = heads[of_attention[0]] if of_attention[1:7] == "_proj." and of_attention[0] in "qk" else 0
        zero_centred = settings.norm == "rms_norm_zero_centered" and "norm" in ours
        yield _Part(_theirs(ours), (ours,), heads=(turning,), plus_one=zero_centred)
    if settings.tie_word_embeddings and architecture.always_has_output:
        yield _Part("output.weight", ("embed_tokens.weight",))


def _theirs(ours: str) -> str:
    layer = ""
    if ours.startswith("layers."):
        _, number, ours = ours.split(".", 2)
        layer = f"blk.{number}."
    if ours in _NAMES:
        return layer + _NAMES[ours]
    stem, _, kind = ours.rpartition(".")
    return f"{layer}{_NAMES[stem]}.{kind}"


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from (first half, second half) to pairs of the two; a head is [2, D / 2] rows."""
    if not heads:
        return weight
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _read(weights: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    weight = weights[name].detach().cpu()
    if weight.shape != shape:
        raise BigtrainError(
            f"weight {name} has another shape than the settings say", found=tuple(weight.shape), wanted=tuple(shape)
        )
    return weight


def _check_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], settings: ModelSettings) -> None:
    exported = {name for name in weights if not name.startswith(FOR_TRAINING_ONLY)}
    if differing := sorted(exported ^ shapes.keys()):
        raise BigtrainError(
            f"the weights are not those of a {settings.family} model of these settings",
            found=", ".join(f"{name} {'missing' if name in shapes else 'surplus'}" for name in differing[:10]),
            wanted=f"{len(shapes)} weights",
            fix="export with the settings that the checkpoint was trained with",
        )


def _rope_factors(settings: ModelSettings) -> Tensor | None:
    """The divisors of the rotary frequencies; llama.cpp needs them only for the scaling of Llama 3.1."""
    if settings.rope_scaling is None or settings.rope_scaling.rope_type != "llama3":
        return None
    unscaled = settings.model_copy(update={"rope_scaling": None})
    return rotary_frequencies(unscaled) / rotary_frequencies(settings)


def _add_settings(writer: Any, settings: ModelSettings, architecture: Architecture) -> None:
    writer.add_vocab_size(settings.vocab_size)
    writer.add_context_length(context_length(settings))
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.key_value_heads)
    writer.add_key_length(settings.head_width)
    writer.add_value_length(settings.head_width)
    if settings.norm == "layer_norm":
        writer.add_layer_norm_eps(settings.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(settings.norm_eps)
    if settings.position_embedding == "rope":
        _add_rope(writer, settings)
    _add_feed_forward(writer, settings, architecture)
    if architecture.name == "gptneox":
        writer.add_parallel_residual(settings.parallel_residual)
    if architecture is _GRANITE:
        scale = settings.embedding_multiplier
        writer.add_embedding_scale(settings.hidden_size**0.5 if scale == "sqrt_hidden_size" else scale)
        writer.add_residual_scale(settings.residual_multiplier)
        writer.add_logit_scale(settings.logits_divisor)
        writer.add_attention_scale(settings.attention_scale)
    if architecture.slides:
        windows = [settings.window_of(layer) for layer in range(settings.num_hidden_layers)]
        writer.add_sliding_window(settings.sliding_window or settings.max_position_embeddings)
        writer.add_sliding_window_pattern([window is not None for window in windows])
    if settings.attn_logit_softcapping is not None:
        writer.add_attn_logit_softcapping(settings.attn_logit_softcapping)
    if settings.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(settings.final_logit_softcapping)


def _add_feed_forward(writer: Any, settings: ModelSettings, architecture: Architecture) -> None:
    if not settings.num_experts:
        writer.add_feed_forward_length(settings.intermediate_size)
        return
    writer.add_expert_count(settings.num_experts)
    writer.add_expert_used_count(settings.num_experts_per_tok)
    if architecture.name == "llama":
        writer.add_feed_forward_length(settings.expert_width)
    else:
        writer.add_feed_forward_length(settings.intermediate_size)
        writer.add_expert_feed_forward_length(settings.expert_width)


def _add_rope(writer: Any, settings: ModelSettings) -> None:
    """Base and stretching. `ntk` is but another base."""
    gguf = require_gguf()
    scaling = settings.rope_scaling
    writer.add_rope_dimension_count(settings.rotary_width)
    writer.add_rope_freq_base(effective_theta(settings))
    if scaling is None or scaling.rope_type not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_factor(scaling.factor)
    if scaling.rope_type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_orig_ctx_len(int(original_context(settings)))
    writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
    writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
    usual = attention_factor(scaling.model_copy(update={"attention_factor": None}))
    writer.add_rope_scaling_attn_factors(attention_factor(scaling) / usual)  # llama.cpp multiplies by the usual one

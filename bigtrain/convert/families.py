"""The names and layouts that a family's weights have at Hugging Face. Ours are the same for every family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bigtrain.config.model_settings import ModelSettings


@dataclass(frozen=True)
class WeightMap:
    """One tensor at Hugging Face and what it is made of here.

    Ours, concatenated along dimension 0 and then transposed where `transposed` says so, are theirs; read backwards,
    the same line imports. `{}` in a name is the layer.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False

    def at_layer(self, layer: int) -> WeightMap:
        """The same map with the layer filled in."""
        return WeightMap(self.theirs.format(layer), tuple(name.format(layer) for name in self.ours), self.transposed)


@dataclass(frozen=True)
class Family:
    """Where the weights of a family go."""

    stem_weights: tuple[WeightMap, ...]
    """Weights outside the layers, without the output head."""
    layer_weights: tuple[WeightMap, ...]
    """Weights of one layer."""


_HEAD = WeightMap("lm_head.weight", ("lm_head.weight",))


def weight_maps(settings: ModelSettings) -> Iterator[WeightMap]:
    """Every tensor of the Hugging Face model of these settings, in order. A tied head is not stored twice."""
    family = FAMILIES[settings.family]
    yield from family.stem_weights
    for layer in range(settings.num_hidden_layers):
        yield from (weight.at_layer(layer) for weight in family.layer_weights)
    if not settings.tie_word_embeddings:
        yield _HEAD


def _same(prefix: str, *names: str) -> tuple[WeightMap, ...]:
    return tuple(WeightMap(prefix + name, (name,)) for name in names)


def _conv1d(theirs: str, *ours: str) -> tuple[WeightMap, WeightMap]:
    """GPT-2's `Conv1D`: a linear layer whose weight is stored [in, out]."""
    return (
        WeightMap(f"{theirs}.weight", tuple(f"{name}.weight" for name in ours), transposed=True),
        WeightMap(f"{theirs}.bias", tuple(f"{name}.bias" for name in ours)),
    )


def _affine(theirs: str, ours: str) -> tuple[WeightMap, WeightMap]:
    return WeightMap(f"{theirs}.weight", (f"{ours}.weight",)), WeightMap(f"{theirs}.bias", (f"{ours}.bias",))


FAMILIES: dict[str, Family] = {
    "llama": Family(
        stem_weights=_same("model.", "embed_tokens.weight", "norm.weight"),
        layer_weights=_same(
            "model.",
            "layers.{}.input_layernorm.weight",
            "layers.{}.self_attn.q_proj.weight",
            "layers.{}.self_attn.k_proj.weight",
            "layers.{}.self_attn.v_proj.weight",
            "layers.{}.self_attn.o_proj.weight",
            "layers.{}.post_attention_layernorm.weight",
            "layers.{}.mlp.gate_proj.weight",
            "layers.{}.mlp.up_proj.weight",
            "layers.{}.mlp.down_proj.weight",
        ),
    ),
    "gpt2": Family(
        stem_weights=(
            WeightMap("transformer.wte.weight", ("embed_tokens.weight",)),
            WeightMap("transformer.wpe.weight", ("embed_positions.weight",)),
            *_affine("transformer.ln_f", "norm"),
        ),
        layer_weights=(
            *_affine("transformer.h.{}.ln_1", "layers.{}.input_layernorm"),
            *_conv1d(
                "transformer.h.{}.attn.c_attn",
                "layers.{}.self_attn.q_proj",
                "layers.{}.self_attn.k_proj",
                "layers.{}.self_attn.v_proj",
            ),
            *_conv1d("transformer.h.{}.attn.c_proj", "layers.{}.self_attn.o_proj"),
            *_affine("transformer.h.{}.ln_2", "layers.{}.post_attention_layernorm"),
            *_conv1d("transformer.h.{}.mlp.c_fc", "layers.{}.mlp.up_proj"),
            *_conv1d("transformer.h.{}.mlp.c_proj", "layers.{}.mlp.down_proj"),
        ),
    ),
}

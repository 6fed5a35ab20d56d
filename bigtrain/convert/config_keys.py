"""Rows of the tables between the section model and config.json, each to be read in both directions.

settings --write--> keys of config.json
settings <--read--  keys of config.json, with transformers' own value where one is left out
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings

REQUIRED: Final = object()
"""In place of a value for a key that is left out: it may not be."""

ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh", "relu": "relu", "relu2": "relu2",
}  # fmt: skip
"""Their names of activation functions, and ours."""

_FILLED_IN: Mapping[str, Callable[[ModelSettings], Any]] = {
    "num_key_value_heads": lambda settings: settings.key_value_heads,
    "head_dim": lambda settings: settings.head_width,
    "attention_multiplier": lambda settings: settings.attention_scale,
    "logits_scaling": lambda settings: settings.logits_divisor,
    "num_decoder_layers": lambda settings: (
        settings.decoder_layers if settings.architecture == "encoder_decoder" else None
    ),
    "moe_intermediate_size": lambda settings: settings.expert_width,
    "head_act": lambda settings: settings.head_act or settings.hidden_act,
    "num_hidden_groups": lambda settings: settings.distinct_layers,
}


@dataclass(frozen=True)
class Keys:
    """Keys of config.json that say something together, and how they are written and read."""

    names: frozenset[str]
    write: Callable[[ModelSettings], dict[str, Any]]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]


def key(
    theirs: str,
    *ours: str,
    default: Any = REQUIRED,
    null_means: Callable[[Mapping[str, Any]], Any] = lambda config: None,
    also: tuple[str, ...] = (),
) -> Keys:
    """One key for one setting, or for several that have to agree.

    Args:
        theirs: its name in config.json.
        ours: the settings. Default: of the same name.
        default: the value that transformers takes where the key is left out.
        null_means: the value that `null` stands for, from config.json.
        also: further names under which published files have it; where there are two they have to agree.
    """
    settings = ours or (theirs,)

    def write(model: ModelSettings) -> dict[str, Any]:
        return {theirs: value_of(model, settings[0])}

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        value = one_of(config, (theirs, *also), default)
        return dict.fromkeys(settings, null_means(config) if value is None else value)

    return Keys(frozenset({theirs, *also}), write, read)


def activation(
    theirs: str, *, default: str, write_as: Mapping[str, str] | None = None, read_as: Mapping[str, str] | None = None
) -> Keys:
    """The activation function.

    Args:
        theirs: its name in config.json.
        default: what transformers takes where it is left out.
        write_as: our names that this family spells in another way.
        read_as: their names that mean another function in this family.
    """

    def write(model: ModelSettings) -> dict[str, Any]:
        return {theirs: (write_as or {}).get(model.hidden_act, model.hidden_act)}

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        name = config.get(theirs, default)
        if name not in ACTIVATIONS:
            raise unreadable(theirs, name, ", ".join(ACTIVATIONS))
        return {"hidden_act": (read_as or {}).get(name, ACTIVATIONS[name])}

    return Keys(frozenset({theirs}), write, read)


def head_activation(theirs: str, *, default: str) -> Keys:
    """The activation function of the head.

    Args:
        theirs: its name in config.json.
        default: what transformers takes where it is left out.
    """
    of_layers = activation(theirs, default=default)

    def write(model: ModelSettings) -> dict[str, Any]:
        return {theirs: value_of(model, "head_act")}

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        return {"head_act": of_layers.read(config)["hidden_act"]}

    return Keys(frozenset({theirs}), write, read)


def labels(number: int) -> Keys:
    """The names of the classes, `id2label` and back, of which we need the number. An export may write other names.

    Args:
        number: of classes where there are no names.
    """

    def write(model: ModelSettings) -> dict[str, Any]:
        return named_labels([f"LABEL_{label}" for label in range(model.num_labels)])

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        return {"num_labels": len(label_names(config) or ()) or config.get("num_labels", number)}

    return Keys(frozenset({"id2label", "label2id", "num_labels"}), write, read)


def named_labels(names: Sequence[str]) -> dict[str, Any]:
    """`id2label` and `label2id` of classes, in their order."""
    return {
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
    }


def label_names(config: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes in their order; None where config.json has none. Raises BigtrainError."""
    names = config.get("id2label")
    if names is None:
        return None
    numbers = [str(label) for label in range(len(names))] if isinstance(names, dict) else []
    if not numbers or names.keys() != set(numbers) or not all(isinstance(name, str) for name in names.values()):
        raise unreadable("id2label", str(names)[:200], "a name for each of the labels 0, 1, 2, ...")
    return [names[label] for label in numbers]


def start_and_end() -> Keys:
    """question_answering: two labels, for the start and the end of an answer."""

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        number = len(label_names(config) or ()) or config.get("num_labels", 2)
        if number != 2:
            raise unreadable("num_labels", number, "2, for the start and the end of an answer")
        return {}

    return Keys(frozenset({"id2label", "label2id", "num_labels"}), lambda model: {}, read)


def fixed(theirs: str, value: Any) -> Keys:
    """A key that every model of the family has with this value, and that is written.

    Args:
        theirs: its name in config.json.
        value: the only one.
    """

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        if config.get(theirs, value) != value:
            raise unreadable(theirs, config[theirs], value)
        return {}

    return Keys(frozenset({theirs}), lambda model: {theirs: value}, read)


def in_both(theirs: str, ours: str) -> Keys:
    """A setting that both halves of an encoder-decoder have at theirs, with `encoder_` and `decoder_` before its name.

    Args:
        theirs: what follows.
        ours: the setting.
    """
    names = (f"encoder_{theirs}", f"decoder_{theirs}")

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        return {ours: one_of(config, names, REQUIRED)}

    return Keys(frozenset(names), lambda model: dict.fromkeys(names, value_of(model, ours)), read)


def scaled_embedding() -> Keys:
    """bart, marian: whether embeddings are multiplied by the root of their width."""

    def write(model: ModelSettings) -> dict[str, Any]:
        return {"scale_embedding": model.embedding_multiplier == "sqrt_hidden_size"}

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        scales = config.get("scale_embedding", False)
        return {"embedding_multiplier": "sqrt_hidden_size" if scales else 1.0}

    return Keys(frozenset({"scale_embedding"}), write, read)


def width_of_heads(theirs: str) -> Keys:
    """xlnet: the width of a head, which has to be that of the model over the number of heads.

    Args:
        theirs: its name in config.json.
    """

    def write(model: ModelSettings) -> dict[str, Any]:
        return {theirs: model.hidden_size // model.num_attention_heads}

    return Keys(frozenset({theirs}), write, lambda config: {"head_dim": config.get(theirs)})


def no_longest_context(length: int) -> Keys:
    """xlnet: config.json has no longest context, and a model none. A model that is read gets one that is usual.

    Args:
        length: it, in tokens.
    """
    return Keys(frozenset(), lambda model: {}, lambda config: {"max_position_embeddings": length})


def t5_feed_forward() -> Keys:
    """t5: the activation function, `relu`, and whether the layer is gated, `gated-gelu`; and what transformers makes of
    it, which it writes beside it."""
    spelled = {"gelu_pytorch_tanh": "gelu"}  # transformers makes gelu_new of gated-gelu, and knows no other gated one

    def write(model: ModelSettings) -> dict[str, Any]:
        name = model.hidden_act
        return {"feed_forward_proj": f"gated-{spelled.get(name, name)}" if model.gated_mlp else name}

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        *gated, name = config.get("feed_forward_proj", "relu").split("-")
        act = "gelu_new" if (gated, name) == (["gated"], "gelu") else name
        if gated not in ([], ["gated"]) or act not in ACTIVATIONS:
            raise unreadable("feed_forward_proj", config["feed_forward_proj"], f"gated-NAME or NAME of {ACTIVATIONS}")
        for derived, true in (("is_gated_act", bool(gated)), ("dense_act_fn", act)):
            if config.get(derived, true) != true:
                raise unreadable(derived, config[derived], f"{true}, as feed_forward_proj says")
        return {"gated_mlp": bool(gated), "hidden_act": ACTIVATIONS[act]}

    return Keys(frozenset({"feed_forward_proj", "is_gated_act", "dense_act_fn"}), write, read)


def t5_head() -> Keys:
    """t5: a tied embedding comes with logits divided by the root of the width, and a head of its own without.

    transformers 5 writes `tie_word_embeddings: true` for both, and `scale_decoder_outputs` beside it.
    """

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        tied = config.get("tie_word_embeddings", True)
        if not tied and config.get("scale_decoder_outputs", False):
            raise unreadable("scale_decoder_outputs", True, "false, where tie_word_embeddings is")
        tied = config.get("scale_decoder_outputs", tied)
        return {"tie_word_embeddings": tied, "logits_scaling": "sqrt_hidden_size" if tied else 1.0}

    names = frozenset({"tie_word_embeddings", "scale_decoder_outputs"})
    return Keys(names, lambda model: {"tie_word_embeddings": model.tie_word_embeddings}, read)


def offset_positions() -> Keys:
    """roberta: positions begin after the padding token's id, and the longest context counts the rows before, too."""

    def write(model: ModelSettings) -> dict[str, Any]:
        rows = model.max_position_embeddings + model.position_offset
        return {"max_position_embeddings": rows, "pad_token_id": model.position_offset - 1}

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        padding, rows = config.get("pad_token_id", 1), config["max_position_embeddings"]
        if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
            raise unreadable("pad_token_id", padding, "the id of the padding token, after which positions begin")
        return {"max_position_embeddings": rows - padding - 1, "position_offset": padding + 1}

    return Keys(frozenset({"max_position_embeddings", "pad_token_id"}), write, read)


def local_attention() -> Keys:
    """modernbert: the width of the window, and the layers that have it, by name or every so many that do not."""

    def write(model: ModelSettings) -> dict[str, Any]:
        types = ["sliding_attention" if model.slides(n) else "full_attention" for n in range(model.num_hidden_layers)]
        width = model.sliding_window if "sliding_attention" in types else None
        return {"local_attention": width or 128, "layer_types": types}  # transformers wants one in any case

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        layers, every = config["num_hidden_layers"], config.get("global_attn_every_n_layers", 3)
        types = config.get("layer_types")
        if types is None:
            types = ["sliding_attention" if layer % every else "full_attention" for layer in range(layers)]
        return _windows_of(types, layers, config.get("local_attention", 128))

    return Keys(frozenset({"local_attention", "layer_types", "global_attn_every_n_layers"}), write, read)


def score_scale() -> Keys:
    """gemma2's `query_pre_attn_scalar`: what the products of queries and keys are divided by the root of."""

    def write(model: ModelSettings) -> dict[str, Any]:
        return {"query_pre_attn_scalar": round(model.attention_scale**-2)}  # transformers takes whole numbers only

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        return {"attention_multiplier": config.get("query_pre_attn_scalar", 256) ** -0.5}

    return Keys(frozenset({"query_pre_attn_scalar"}), write, read)


def sparse_layers() -> Keys:
    """qwen3_moe: layers with experts, given by those without, or by a step, or both."""

    def write(model: ModelSettings) -> dict[str, Any]:
        return {"mlp_only_layers": sorted(set(model.mlp_only_layers)), "decoder_sparse_step": 1}

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        step = config.get("decoder_sparse_step", 1)
        dense = {layer for layer in range(config["num_hidden_layers"]) if (layer + 1) % step}
        return {"mlp_only_layers": tuple(sorted(dense | set(config.get("mlp_only_layers") or ())))}

    return Keys(frozenset({"mlp_only_layers", "decoder_sparse_step"}), write, read)


def window_of_all_layers(*, default: int | None, switch: bool = False) -> Keys:
    """One window for all layers, or none; `switch`: it counts only with `use_sliding_window`."""

    def write(model: ModelSettings) -> dict[str, Any]:
        window = next((w for w in windows(model) if w is not None), None)
        return {"sliding_window": window} | ({"use_sliding_window": window is not None} if switch else {})

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        on = config.get("use_sliding_window", False) if switch else True
        return {"sliding_window": config.get("sliding_window", default) if on else None, "layer_types": ()}

    names = {"sliding_window", "use_sliding_window", "max_window_layers"} if switch else {"sliding_window"}
    return Keys(frozenset(names), write, read)


def window_by_layer(*, alternating: bool) -> Keys:
    """A window for some layers: every other one (gemma2), or, switched on, from `max_window_layers` on (qwen)."""

    def write(model: ModelSettings) -> dict[str, Any]:
        window = next((w for w in windows(model) if w is not None), None)
        types = ["full_attention" if w is None else "sliding_attention" for w in windows(model)]
        if alternating:  # transformers wants a window even where no layer slides
            return {"sliding_window": window or model.max_position_embeddings, "layer_types": types}
        return {"sliding_window": window, "layer_types": types, "use_sliding_window": window is not None}

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        layers, window = config["num_hidden_layers"], config.get("sliding_window", 4096)
        if not alternating and not config.get("use_sliding_window", False):
            window = None
        first = 0 if alternating else config.get("max_window_layers", 28)
        types = config.get("layer_types") or [
            "sliding_attention" if layer >= first and not (alternating and layer % 2) else "full_attention"
            for layer in range(layers)
        ]
        return _windows_of(types, layers, window)

    names = {"sliding_window", "layer_types"} | (set() if alternating else {"use_sliding_window", "max_window_layers"})
    return Keys(frozenset(names), write, read)


def _windows_of(types: list[str], layers: int, window: int | None) -> dict[str, Any]:
    """The settings of layers of these types."""
    if len(types) != layers:
        raise unreadable("layer_types", f"{len(types)} entries", f"{layers}, one for each layer")
    if unknown := set(types) - {"sliding_attention", "full_attention"}:
        raise unreadable("layer_types", ", ".join(sorted(unknown)), "sliding_attention or full_attention")
    if window is None or "sliding_attention" not in types:
        return {"sliding_window": None, "layer_types": ()}
    if "full_attention" not in types:
        return {"sliding_window": window, "layer_types": ()}
    return {"sliding_window": window, "layer_types": _shortest_period(types)}


def windows(model: ModelSettings) -> list[int | None]:
    """How many tokens a token sees, by layer."""
    return [model.window_of(layer) for layer in range(model.num_hidden_layers)]


def value_of(model: ModelSettings, setting: str) -> Any:
    """A setting, with the default filled in where it follows from others."""
    return _FILLED_IN[setting](model) if setting in _FILLED_IN else getattr(model, setting)


def one_of(config: Mapping[str, Any], names: tuple[str, ...], default: Any) -> Any:
    """The value of a key that may have several names; they have to agree."""
    found = {name: config[name] for name in names if name in config}
    if not found and default is REQUIRED:
        raise unreadable(names[0], "no such key", "a value")
    values = list(found.values()) or [default]
    if any(value != values[0] for value in values):
        raise unreadable(" and ".join(found), ", ".join(map(str, values)), "the same twice")
    return values[0]


def unreadable(name: str, found: object, wanted: object) -> BigtrainError:
    """What is raised for a key whose value no model of ours has."""
    return BigtrainError(f"config.json: {name}", found=found, wanted=wanted)


def _shortest_period(types: list[str]) -> tuple[str, ...]:
    return next(
        tuple(types[:period])
        for period in range(1, len(types) + 1)
        if all(kind == types[layer % period] for layer, kind in enumerate(types))
    )

"""config.json and the section model, in both directions.

    settings --config_of--> config.json --settings_of--> settings

What a family cannot express is what does not survive that round: `obstacles` names it. On the way in every key is
mapped, or may have certain values only, or is known to change nothing; a key that is none of these is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.convert.config_keys import value_of, windows
from bigtrain.convert.families import FAMILIES, Family
from bigtrain.model import attention_factor, effective_theta, original_context

NOT_COMPUTED = frozenset({
    "family", "init_from", "expect_parameters", "initializer_range", "router_aux_loss_coef", "router_z_loss_coef",
    "z_loss_coef", "num_nextn_predict_layers", "mtp_loss_coef", "mup_base_hidden_size",
})  # fmt: skip
"""Settings that decide how a model begins and learns; what a trained one computes does not depend on them, but for
muP's division of the logits, which counts as logits_scaling."""

_IDLE = frozenset({
    # what kind of file this is
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "bigtrain_version", "tokenizer_class",
    "task_specific_params", "finetuning_task", "id2label", "label2id", "num_labels", "problem_type",
    # which tokens mean what
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id",
    # in which precision the weights are stored, and how it is computed
    "dtype", "torch_dtype", "use_cache", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "use_bfloat16", "torchscript", "tf_legacy_loss", "gradient_checkpointing", "chunk_size_feed_forward",
    # what comes out beside the logits
    "output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "is_decoder",
    # how text is drawn from it
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "prefix",
})  # fmt: skip

_ONLY: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,), "add_cross_attention": (False,), "tie_encoder_decoder": (False,),
    "cross_attention_hidden_size": (None,), "pruned_heads": ({}, None), "quantization_config": (None,),
    "auto_map": (None,), "per_layer_config": (None,),
}  # fmt: skip


def config_of(settings: ModelSettings) -> dict[str, Any]:
    """What config.json says about the function of a model.

    Raises:
        BigtrainError: the family cannot express it.
    """
    if found := obstacles(settings):
        raise BigtrainError(
            f"transformers cannot compute what this {settings.family} model computes",
            found="; ".join(found),
            fix="train with settings that the family can have, or under the name of another family",
        )
    return _written(settings)


def obstacles(settings: ModelSettings) -> list[str]:
    """Why a model of these settings cannot be exported to Hugging Face; nothing where it can.

    Each names a setting with its value and with the one that the family would be read back with.
    """
    family, name = FAMILIES[settings.family], settings.family
    found = []
    if family.whole_heads and settings.hidden_size % settings.num_attention_heads:
        found.append(
            f"hidden_size {settings.hidden_size} is not a multiple of num_attention_heads "
            f"{settings.num_attention_heads}, as transformers wants it for {name}"
        )
    if name == "mixtral" and not settings.num_experts:
        found.append("num_experts is 0, a mixtral has experts")
    try:
        back, _ = settings_of(_written(settings))
    except BigtrainError as error:
        return [*found, f"{error.what}: {error.found}, {name} has {error.wanted}"]
    differing = differences(settings, back)
    return found + [f"{key} is {ours}, {name} has {theirs}" for key, (ours, theirs) in differing.items()]


def settings_of(config: Mapping[str, Any]) -> tuple[ModelSettings, list[str]]:
    """The section model of a config.json, and notes on what training had that ours has not.

    Raises:
        BigtrainError: it is of no family that we know, or says something that we cannot compute.
    """
    family = _family_of(config)
    if problems := list(_problems(config, family)):
        raise BigtrainError(
            f"this {config['model_type']} model is not one that bigtrain computes",
            found="; ".join(problems),
            fix="report the key if it ought to be known",
        )
    values: dict[str, Any] = {}
    for keys in family.keys:
        try:
            values |= keys.read(config)
        except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError) as error:
            given = {name: config[name] for name in sorted(keys.names & config.keys())}
            raise BigtrainError(
                f"config.json: {', '.join(sorted(keys.names))} cannot be understood",
                found=f"{json.dumps(given)} ({type(error).__name__}: {error})",
            ) from None
    try:
        settings = ModelSettings.model_validate_json(
            json.dumps({"family": config["model_type"], **values}), strict=True
        )
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise BigtrainError("config.json says what the section model cannot", found=wrong) from None
    notes = [
        f"{key} was {config[key]} when it was trained, and is 0 here"
        for key in sorted(family.training_only & config.keys())
        if config[key]
    ]
    return settings, notes


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder. Raises BigtrainError."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BigtrainError(
            f"{folder} is no Hugging Face model",
            found=f"{file.name}: {error}",
            wanted="a folder with config.json, *.safetensors and tokenizer.json",
        ) from None
    if not isinstance(config, dict):
        raise BigtrainError(f"{folder} is no Hugging Face model", found=f"{file.name}: a {type(config).__name__}")
    return config


def differences(ours: ModelSettings, theirs: ModelSettings) -> dict[str, tuple[Any, Any]]:
    """In which settings two models would compute something else, with both values."""
    one, other = function_of(ours), function_of(theirs)
    keys = [key for key in one | other if not _alike(one.get(key), other.get(key))]
    return {key: (one.get(key), other.get(key)) for key in keys}


def function_of(settings: ModelSettings) -> dict[str, Any]:
    """What decides what a trained model computes: two ways to say the same are one here, and what does nothing under
    the other settings is left out."""
    values = {name: value_of(settings, name) for name in type(settings).model_fields if name not in NOT_COMPUTED}
    values["layer_types"] = tuple("full" if window is None else "sliding" for window in windows(settings))
    if "sliding" not in values["layer_types"]:
        del values["sliding_window"]
    with_experts = [settings.has_experts(layer) for layer in range(settings.num_hidden_layers)]
    values["mlp_only_layers"] = [layer for layer, has in enumerate(with_experts) if not has]
    if not any(with_experts):
        for name in (
            "num_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "norm_topk_prob",
            "mlp_only_layers",
        ):
            del values[name]
        del values["router_bias_update_rate"]
    elif all(with_experts):
        del values["intermediate_size"]
    if settings.position_embedding != "t5":
        del values["relative_attention_num_buckets"], values["relative_attention_max_distance"]
    for name in ("rope_theta", "partial_rotary_factor", "rope_scaling"):
        del values[name]
    if settings.position_embedding == "rope":
        values |= _rotation(settings)
    return values


def _rotation(settings: ModelSettings) -> dict[str, Any]:
    scaling = settings.rope_scaling
    values = {
        "rope_theta": effective_theta(settings),
        "partial_rotary_factor": settings.rotary_width / settings.head_width,
        "rope_scaling": None,
    }
    if scaling is None or scaling.rope_type == "ntk":
        return values
    stretched: dict[str, Any] = {"rope_type": scaling.rope_type, "factor": scaling.factor}
    if scaling.rope_type != "linear":
        stretched["original_max_position_embeddings"] = original_context(settings)
    if scaling.rope_type == "llama3":
        stretched |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.rope_type == "yarn":
        stretched |= {"attention_factor": attention_factor(scaling)}
        stretched |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    return values | {"rope_scaling": stretched}


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)  # a root written as a square
    return bool(one == other)


def _written(settings: ModelSettings) -> dict[str, Any]:
    family = FAMILIES[settings.family]
    written = {name: value for keys in family.keys for name, value in keys.write(settings).items()}
    silent = family.training_only
    return {
        "architectures": [family.architecture],
        "model_type": settings.family,
        **written,
        **dict.fromkeys(sorted(silent), 0.0),
    }


def _family_of(config: Mapping[str, Any]) -> Family:
    name, architectures = config.get("model_type"), config.get("architectures")
    if not isinstance(name, str) or name not in FAMILIES:
        raise BigtrainError(
            "config.json: model_type is of no family that bigtrain knows", found=name, wanted=", ".join(FAMILIES)
        )
    family = FAMILIES[name]
    if architectures is not None and architectures != [family.architecture]:
        raise BigtrainError(
            "config.json: architectures is not this family's language model",
            found=architectures,
            wanted=family.architecture,
        )
    return family


def _problems(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    mapped = {name for keys in family.keys for name in keys.names}
    only = {**_ONLY, **family.only}
    for key, value in config.items():
        if key in family.same_as:
            if value != config.get(family.same_as[key], value):
                yield f"{key} {value} is not {family.same_as[key]} {config[family.same_as[key]]}"
        elif key in only:
            if value not in only[key]:
                yield f"{key} {value} (known: {', '.join(str(good) for good in only[key])})"
        elif key not in mapped | _IDLE | family.idle | family.training_only | {"architectures", "model_type"}:
            yield f"unknown key {key}: {json.dumps(value)}"

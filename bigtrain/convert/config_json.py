"""config.json and the section model, in both directions.

    settings --config_of--> config.json --settings_of--> settings

What a family cannot express is what does not survive that round: `obstacles` names it. On the way in every key is
mapped, or may have certain values only, or is known to change nothing. What transformers skips has to be true of the
model, or the user has to say that it is ignored. Other keys are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigtrain.base import BigtrainError, read_json
from bigtrain.config import DROPOUT_RATES, ModelSettings
from bigtrain.convert.config_keys import value_of, windows
from bigtrain.convert.families import FAMILIES, family_of
from bigtrain.convert.family import Family
from bigtrain.convert.skipped_keys import claim_of, is_about_files
from bigtrain.model import attention_factor, effective_theta, original_context

CONFIG_BYTES = 16 << 20
"""A config.json is not longer: with labels of every token it has about a megabyte."""

NOT_COMPUTED = frozenset({
    "family", "init_from", "expect_parameters", "initializer_range", "router_aux_loss_coef", "router_z_loss_coef",
    "z_loss_coef", "label_smoothing", "num_nextn_predict_layers", "mtp_loss_coef", "mup_base_hidden_size",
    *DROPOUT_RATES,
})  # fmt: skip
"""Settings that decide how a model begins and learns; what a trained one computes does not depend on them, but for
muP's division of the logits, which counts as logits_scaling."""

OF_TOKENS_HEAD = (
    "tie_word_embeddings", "head_bias", "head_transform", "logits_scaling", "final_logit_softcapping",
)  # fmt: skip
"""Settings of the head that predicts tokens, which a model with a task_head has not."""

_IDLE = frozenset({
    # what kind of file this is
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "bigtrain_version", "tokenizer_class",
    "task_specific_params", "finetuning_task", "id2label", "label2id", "num_labels", "problem_type",
    # which tokens mean what
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id",
    # in which precision the weights are stored, and how it is computed
    "dtype", "torch_dtype", "use_cache", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "_attn_implementation_internal", "experts_implementation", "_experts_implementation",
    "_experts_implementation_internal",
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
    "cross_attention_hidden_size": (None,), "pruned_heads": ({}, None), "auto_map": (None,),
    # weights that are not what they seem
    "quantization_config": (None,), "quantization": (None,), "compression_config": (None,), "sparsity_config": (None,),
    # transformers reads these too, though no family declares them
    "is_causal": (True,), "attention_chunk_size": (None,), "per_layer_config": (None,), "fusion_config": (None,),
    "distributed_config": (None,), "transformers_weights": (None,),
}  # fmt: skip

_MAY_BE_IGNORED = frozenset({"auto_map"})
"""Keys with certain values that transformers skips all the same, as long as it may not run code of the folder."""

_LARGEST: Mapping[str, int] = {
    "vocab_size": 1 << 24, "hidden_size": 1 << 22, "intermediate_size": 1 << 22, "moe_intermediate_size": 1 << 22,
    "num_attention_heads": 1 << 14, "num_key_value_heads": 1 << 14, "head_dim": 1 << 20,
    "max_position_embeddings": 1 << 32, "num_experts": 10_000, "embedding_size": 1 << 22, "type_vocab_size": 1 << 24,
    "position_offset": 1 << 24,
}  # fmt: skip
"""No model is larger. Beyond it, sizes of tensors are no integers of 64 bits."""
_MOST_LAYERS = 10_000


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
    name = settings.family
    try:
        family = family_of(settings)
    except BigtrainError as error:
        return [error.what]
    found = []
    if family.whole_heads and settings.hidden_size % settings.num_attention_heads:
        found.append(
            f"hidden_size {settings.hidden_size} is not a multiple of num_attention_heads "
            f"{settings.num_attention_heads}, as transformers wants it for {name}"
        )
    if "type_vocab_size" in _mapped_names(family) and not settings.type_vocab_size:
        found.append(f"type_vocab_size is 0, {name} has one kind of segments at least")
    if name == "mixtral" and not settings.num_experts:
        found.append("num_experts is 0, a mixtral has experts")
    try:
        back, _ = settings_of(_written(settings))
    except BigtrainError as error:
        return [*found, f"{error.what}: {error.found}, {name} has {error.wanted}"]
    differing = differences(settings, back)
    return found + [f"{key} is {ours}, {name} has {theirs}" for key, (ours, theirs) in differing.items()]


def settings_of(config: Mapping[str, Any], ignored: Collection[str] = ()) -> tuple[ModelSettings, list[str]]:
    """The section model of a config.json.

    Args:
        config: what stands in the file.
        ignored: keys that the user wants ignored, though they may say that the model is another one.

    Returns:
        The section, and notes on keys that were skipped and on what training had that ours has not.

    Raises:
        BigtrainError: it is of no family that we know, or says something that we cannot compute.
    """
    family = _family_in(config)
    _check_ignored(config, family, ignored)
    if problems := list(_problems(config, family, ignored)):
        raise _not_ours(config, problems)
    settings = _mapped(config, family)
    skipped, problems = _skipped(config, family, ignored, settings)
    if problems:
        raise _not_ours(config, problems)
    notes = [
        f"{key} was {_shown(config[key])} when it was trained, and is 0 here"
        for key in sorted(family.training_only & config.keys())
        if config[key]
    ]
    if skipped:
        notes.append(f"config.json: skipped, as transformers does: {', '.join(skipped)}")
    notes += [f"config.json: ignored, as --ignore-key says: {key} {_shown(config[key])}" for key in sorted(ignored)]
    return settings, notes


def _mapped(config: Mapping[str, Any], family: Family) -> ModelSettings:
    """The section model that the keys of the family's table make."""
    values: dict[str, Any] = {}
    for keys in family.keys:
        try:
            values |= keys.read(config)
        except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError) as error:
            given = {name: config[name] for name in sorted(keys.names & config.keys())}
            raise BigtrainError(
                f"config.json: {', '.join(sorted(keys.names))} cannot be understood",
                found=f"{_shown(given)} ({type(error).__name__}: {error})",
            ) from None
    try:
        settings = ModelSettings.model_validate_json(
            json.dumps({"family": config["model_type"], **family.settings, **values}), strict=True
        )
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise BigtrainError("config.json says what the section model cannot", found=wrong) from None
    except (ArithmeticError, RecursionError) as error:
        raise BigtrainError("config.json says what the section model cannot", found=str(error)) from None
    if large := [
        f"{name} {value_of(settings, name)}"
        for name, most in _LARGEST.items()
        if (value_of(settings, name) or 0) > most
    ]:
        raise BigtrainError(
            "config.json is of a model that is too large", found=", ".join(large), wanted=f"at most {_LARGEST}"
        )
    return settings


def _not_ours(config: Mapping[str, Any], problems: list[str]) -> BigtrainError:
    return BigtrainError(
        f"this {config['model_type']} model is not one that bigtrain computes",
        found="; ".join(problems),
        fix="report a key that ought to be known; one that changes nothing in transformers is skipped with "
        "bigtrain import HF_DIR OUT --ignore-key KEY",
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder. Raises BigtrainError."""
    file = folder / "config.json"
    wanted = "a folder with config.json, *.safetensors and tokenizer.json"
    try:
        config = read_json(file, CONFIG_BYTES)
    except (FileNotFoundError, BigtrainError) as error:
        found = error.found if isinstance(error, BigtrainError) else "no such file"
        raise BigtrainError(
            f"{folder} is no Hugging Face model", found=f"{file.name}: {found}", wanted=wanted
        ) from None
    if not isinstance(config, dict):
        found = f"{file.name}: a {type(config).__name__}"
        raise BigtrainError(f"{folder} is no Hugging Face model", found=found, wanted=wanted)
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
    if settings.architecture != "encoder_decoder":
        del values["num_decoder_layers"]
    if settings.position_embedding != "t5":
        del values["relative_attention_num_buckets"], values["relative_attention_max_distance"]
    if settings.position_embedding != "sinusoidal":
        del values["sinusoidal_layout"]
    if settings.position_embedding == "transformer_xl":  # which knows no longest context
        del values["max_position_embeddings"]
    if settings.norm != "layer_norm":
        del values["norm_bias"]
    if settings.task_head == "none":
        del values["num_labels"], values["classifier_transform"]
    else:
        values["classifier_transform"] = settings.transform_of_task
        for name in OF_TOKENS_HEAD:
            del values[name]
    if not settings.head_transform if settings.task_head == "none" else settings.transform_of_task != "norm":
        del values["head_transform_bias"], values["head_act"]
    for name in ("rope_theta", "partial_rotary_factor", "rope_scaling", "local_rope_theta"):
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
    if any(windows(settings)):
        values["local_rope_theta"] = settings.local_rope_theta or effective_theta(settings)
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
    family = family_of(settings)
    written = {name: value for keys in family.keys for name, value in keys.write(settings).items()}
    silent = family.training_only
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type or settings.family,
        **written,
        **dict.fromkeys(sorted(silent), 0.0),
        **dict.fromkeys(sorted(family.token_ids), None),
    }


def _family_in(config: Mapping[str, Any]) -> Family:
    name, architectures = config.get("model_type"), config.get("architectures")
    if not isinstance(name, str) or name not in FAMILIES:
        raise BigtrainError(
            "config.json: model_type is of no family that bigtrain knows", found=name, wanted=", ".join(FAMILIES)
        )
    variants = list(FAMILIES[name].variants())
    found = (
        variants[:1] if architectures is None else [each for each in variants if [each.architecture] == architectures]
    )
    if not found:
        raise BigtrainError(
            "config.json: architectures is not this family's language model, nor one of its models for tasks",
            found=architectures,
            wanted=", ".join(each.architecture for each in variants),
        )
    return found[0]


def _check_ignored(config: Mapping[str, Any], family: Family, ignored: Collection[str]) -> None:
    """Refuse to ignore what is not there, and what decides what is computed."""
    if absent := sorted(set(ignored) - config.keys()):
        raise BigtrainError(
            f"config.json has no key {', '.join(absent)}", found="--ignore-key " + " ".join(absent), fix="leave it out"
        )
    decisive = _mapped_names(family) | (_ONLY.keys() - _MAY_BE_IGNORED) | family.only.keys() | family.same_as.keys()
    if refused := sorted(set(ignored) & (decisive | {"model_type", "architectures"})):
        raise BigtrainError(
            f"{', '.join(refused)} of config.json cannot be ignored",
            found=", ".join(f"{key} {_shown(config[key])}" for key in refused),
            wanted="keys that transformers does not read for this family",
            fix="leave --ignore-key out for these",
        )


def _mapped_names(family: Family) -> set[str]:
    return {name for keys in family.keys for name in keys.names}


def _is_idle(key: str, family: Family) -> bool:
    return key in _IDLE | family.idle | family.training_only | family.token_ids | {"architectures", "model_type"}


def _problems(config: Mapping[str, Any], family: Family, ignored: Collection[str]) -> Iterator[str]:
    """What is wrong with single keys, as far as it can be seen before the settings are made."""
    mapped, only = _mapped_names(family), {**_ONLY, **family.only}
    for key, value in config.items():
        if key in ignored:
            continue
        if key in family.same_as:
            if value != config.get(family.same_as[key], value):
                yield f"{key} {_shown(value)} is not {family.same_as[key]} {_shown(config[family.same_as[key]])}"
        elif key in only:
            if value not in only[key]:
                yield f"{key} {_shown(value)} (known: {', '.join(_shown(good) for good in only[key])})"
        elif key in ("num_hidden_layers", "n_layer") and isinstance(value, int) and value > _MOST_LAYERS:
            yield f"{key} {_shown(value)} (at most {_MOST_LAYERS})"
        elif key in mapped or _is_idle(key, family) or value is None:
            continue
        elif claim_of(key) is None and not is_about_files(key):
            yield f"unknown key {_named(key)}: {_shown(value)}"


def _skipped(
    config: Mapping[str, Any], family: Family, ignored: Collection[str], settings: ModelSettings
) -> tuple[list[str], list[str]]:
    """The keys that transformers skips for this family and that are true of the model, and those that are not."""
    skipped, problems = [], []
    known = _mapped_names(family) | _ONLY.keys() | family.only.keys() | family.same_as.keys() | set(ignored)
    for key, value in config.items():
        if key in known or _is_idle(key, family):
            continue
        claim = None if value is None or is_about_files(key) else claim_of(key)
        if claim is None or claim(value, settings, config):
            skipped.append(f"{_named(key)} {_shown(value)}")
        else:
            problems.append(f"{key} {_shown(value)}, which transformers skips, is not true of a {settings.family} here")
    return skipped, problems


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _named(key: str) -> str:
    return key if key.isprintable() and len(key) <= 100 else _shown(key)

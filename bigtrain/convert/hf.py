"""Export to a Hugging Face folder, which `AutoModelForCausalLM` and `AutoTokenizer` load without network.

    weights (our names) --weight_maps--> their names and layout --> .safetensors
    settings            -->  config.json, generation_config.json
    tokenizer.json      -->  the same bytes, with tokenizer_config.json and special_tokens_map.json beside it
    documents           -->  such as README.md, as they are

`transformers` is not needed to write it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bigtrain.config.errors import BigtrainError
from bigtrain.config.model_settings import ModelSettings
from bigtrain.convert.families import WeightMap, weight_maps
from bigtrain.convert.shards import write_safetensors
from bigtrain.model import build_model
from bigtrain.version import __version__

_MARK = "bigtrain_version"
"""The key in config.json by which a folder is known as one of ours, and may be replaced."""


def export_hf(
    weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    settings: ModelSettings,
    tokenizer_file: Path,
    out: Path,
    *,
    end_of_text: str,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = 5_000_000_000,
    documents: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the folder under a temporary name, then move it to `out` in one step.

    Args:
        weights: whole parameters by the names of `Decoder.named_parameters()`, in any order. An iterator is read
            once, and no more than a shard is held.
        settings: the model's shape.
        tokenizer_file: a `tokenizer.json`.
        out: the folder to make. An earlier export there is replaced.
        end_of_text: the token that ends a document.
        dtype: of the weights written; rounded to it from what `weights` has.
        shard_bytes: limit on one weights file.
        documents: texts to lay beside the model, by the names of their files.

    Raises:
        BigtrainError: `out` holds something else, a weight is missing, unknown or misshapen, the tokenizer does not
            know `end_of_text`, or `transformers` has no such shape.
    """
    _refuse_foreign(out)
    _refuse_unloadable(settings)
    end_of_text_id = _token_id(tokenizer_file, end_of_text)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    named = weights.items() if isinstance(weights, Mapping) else weights
    write_safetensors(_theirs(named, settings, dtype), partial, shard_bytes)
    _write_json(partial / "config.json", _config(settings, end_of_text_id, dtype))
    _write_json(partial / "generation_config.json", {"eos_token_id": end_of_text_id, "pad_token_id": end_of_text_id})
    shutil.copyfile(tokenizer_file, partial / "tokenizer.json")
    _write_json(partial / "special_tokens_map.json", {"eos_token": end_of_text})
    _write_json(
        partial / "tokenizer_config.json",
        {
            "eos_token": end_of_text,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": settings.max_position_embeddings,
            "clean_up_tokenization_spaces": False,
        },
    )
    for name, text in documents.items():
        (partial / name).write_text(text, encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)


def hf_tensor(weight: WeightMap, ours: Mapping[str, Tensor]) -> Tensor:
    """One of their tensors from ours (weights or gradients)."""
    joined = torch.cat([ours[name] for name in weight.ours]) if len(weight.ours) > 1 else ours[weight.ours[0]]
    return joined.T if weight.transposed else joined


def _theirs(
    named: Iterable[tuple[str, Tensor]], settings: ModelSettings, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Their names and tensors, each as soon as all of its parts have come."""
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in build_model(settings).named_parameters()}
    used_in = {name: weight for weight in weight_maps(settings) for name in weight.ours}
    parts: dict[str, Tensor] = {}
    seen: set[str] = set()
    for name, tensor in named:
        if shapes.get(name) != tensor.shape:
            raise BigtrainError(
                f"weight {name!r} does not belong to a {settings.family} model of these settings",
                found=tuple(tensor.shape),
                wanted=tuple(shapes[name]) if name in shapes else "no such weight",
                fix="export with the settings that the checkpoint was trained with",
            )
        parts[name] = tensor.detach().to("cpu", dtype)
        seen.add(name)
        weight = used_in[name]
        if all(part in parts for part in weight.ours):
            yield weight.theirs, hf_tensor(weight, parts)
            for part in weight.ours:
                del parts[part]
    if missing := sorted(shapes.keys() - seen):
        raise BigtrainError(
            f"{len(missing)} of {len(shapes)} weights are missing",
            found=", ".join(missing[:10]) + (", ..." if len(missing) > 10 else ""),
            fix="export from a complete checkpoint (`bigtrain checkpoint verify RUN`)",
        )


def _config(settings: ModelSettings, end_of_text_id: int, dtype: torch.dtype) -> dict[str, Any]:
    dtype_name = str(dtype).removeprefix("torch.")
    return {
        **_FAMILY_CONFIGS[settings.family](settings),
        "vocab_size": settings.vocab_size,
        "initializer_range": settings.initializer_range,
        "tie_word_embeddings": settings.tie_word_embeddings,
        "bos_token_id": None,  # a document begins with its first token
        "eos_token_id": end_of_text_id,
        "pad_token_id": None,  # were it end_of_text, transformers would cut that embedding off from training
        "dtype": dtype_name,
        "torch_dtype": dtype_name,  # its name before transformers 5, which many tools still read
        _MARK: __version__,
    }


def _llama_config(settings: ModelSettings) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": settings.hidden_size,
        "num_hidden_layers": settings.num_hidden_layers,
        "num_attention_heads": settings.num_attention_heads,
        "num_key_value_heads": settings.key_value_heads,
        "head_dim": settings.head_width,
        "intermediate_size": settings.intermediate_size,
        "hidden_act": "silu",
        "max_position_embeddings": settings.max_position_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": settings.rope_theta},
        "rope_theta": settings.rope_theta,  # its place before transformers 5
        "rms_norm_eps": settings.norm_eps,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
    }


def _gpt2_config(settings: ModelSettings) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": settings.hidden_size,
        "n_layer": settings.num_hidden_layers,
        "n_head": settings.num_attention_heads,
        "n_inner": settings.intermediate_size,
        "n_positions": settings.max_position_embeddings,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": settings.norm_eps,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


_FAMILY_CONFIGS = {"llama": _llama_config, "gpt2": _gpt2_config}


def _token_id(tokenizer_file: Path, token: str) -> int:
    found = Tokenizer.from_file(str(tokenizer_file)).token_to_id(token)
    if found is None:
        raise BigtrainError(
            f"the tokenizer has no token {token!r}",
            found=tokenizer_file,
            fix="set data.tokenizer.end_of_text to the token that ends a document in it",
        )
    return int(found)


def _refuse_foreign(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    config = out / "config.json"
    if not config.is_file() or _MARK not in json.loads(config.read_text()):
        raise BigtrainError(
            f"{out} holds something that bigtrain did not export; nothing was overwritten",
            fix="choose another folder, or empty this one",
        )


def _refuse_unloadable(settings: ModelSettings) -> None:
    if settings.hidden_size % settings.num_attention_heads:
        raise BigtrainError(
            "transformers loads only models whose hidden_size is a multiple of num_attention_heads",
            found=f"hidden_size {settings.hidden_size}, num_attention_heads {settings.num_attention_heads}",
        )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")

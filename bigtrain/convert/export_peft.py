"""Export of an adapter to a folder that `peft` loads onto the Hugging Face model of its base.

    adapter_config.json          what is adapted, in the names of the Hugging Face model
    adapter_model.safetensors    the matrices, and modules that learned as a whole
    origin.json                where it comes from: the digests of the base's weights

Where a matrix there is made of several of ours, which have adapters of their own, one adapter there does the same: its
first matrix has those of ours one below the other, and its second has a block of columns for each,

    theirs  [W1; W2] + s [B1 0; 0 B2] [A1; A2]

with as many times the rank and alpha. `peft` is not needed to write it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bigtrain.base import BigtrainError, __version__
from bigtrain.config import AdapterSettings, ModelSettings
from bigtrain.convert.config_json import config_of
from bigtrain.convert.layouts import ByHead, Joined, TensorLayout
from bigtrain.convert.out_folder import out_folder, refuse_foreign_folder
from bigtrain.convert.weights import WeightMap, our_shapes, weight_maps
from bigtrain.model import LORA_A, LORA_B, MAGNITUDE, PREFIX_KEY, PREFIX_VALUE, PROMPT, row_lengths

CONFIG, WEIGHTS, ORIGIN = "adapter_config.json", "adapter_model.safetensors", "origin.json"
_NAMES = re.compile(r"adapter_config\.json|adapter_model\.safetensors|origin\.json|README\.md")
_PREFIX = "base_model.model."
"""What peft puts before the names of a model's modules."""
_TASKS = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}
_TASKS_OF_HEADS = {
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    modules: int
    """Modules of the Hugging Face model that are adapted."""
    parameters: int


def export_peft(
    weights: Mapping[str, Tensor],
    trained: Collection[str],
    settings: ModelSettings,
    adapter: AdapterSettings,
    out: Path,
    *,
    base: Mapping[str, str],
    base_name: str,
    dtype: torch.dtype,
    check: Callable[[Path], None] = lambda folder: None,
) -> Exported:
    """Write the folder under a temporary name, then move it to `out` in one step.

    Args:
        weights: of base and adapter, whole, by our names.
        trained: the names of those that learned.
        settings: of the model.
        adapter: of the adapter.
        out: the folder to make. An earlier export there is replaced.
        base: the digests of the base's weights, by our names.
        base_name: the folder or the name of the base at Hugging Face, for `adapter_config.json`.
        dtype: of what is written.
        check: called with the whole folder before it becomes `out`; where it raises, nothing is left of it.

    Raises:
        BigtrainError: `out` holds something else, peft has no such adapter, or the family cannot express the model.
    """
    refuse_foreign_folder(out, lambda folder: (folder / ORIGIN).is_file(), _NAMES, "export")
    config_of(settings)  # it refuses what transformers has not
    if adapter.virtual_tokens:
        virtual, config = _virtual_tokens(weights, settings, adapter, base_name)
        _write({"prompt_embeddings": virtual}, config, base, dtype, out, check)
        return Exported(settings.num_hidden_layers, virtual.numel())
    if not adapter.low_rank:
        raise BigtrainError(
            "peft has no adapter of this kind",
            found=f"adapter.method {adapter.method}",
            wanted="any other adapter",
            fix="use the run with `bigtrain eval` and `bigtrain generate`",
        )
    if settings.tie_word_embeddings and "embed_tokens.weight" in trained:
        raise BigtrainError(
            "peft would unbind the head of this model from its embedding, which learned as a whole",
            found="model.tie_word_embeddings true, and an embedding among adapter.modules_to_save",
            wanted="an embedding that is frozen, or not tied",
            fix="export the merged model: bigtrain export RUN OUT --to hf --merge",
        )
    maps = weight_maps(settings, our_shapes(settings))
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for each in maps:
        if any(name in weights for name in _parts(each, LORA_A)):
            module = each.theirs[0].removesuffix(".weight")
            made = _low_rank(each, weights, adapter)
            ranks[module] = made[LORA_A].shape[0]
            tensors |= {f"{module}.{_their_part(part)}": tensor for part, tensor in made.items()}
    learned = {theirs.rpartition(".")[0] for each in maps for theirs in _theirs_of(each, trained)}
    for each in maps:
        if any(name.rpartition(".")[0] in learned for name in each.theirs):
            tensors |= each.to_theirs({name: weights[name] for name in each.ours})
    tensors = {f"{_PREFIX}{name}": tensor for name, tensor in tensors.items()}
    transposed = any(isinstance(each.layout, Joined) and each.layout.transposed for each in maps)
    config = _config(settings, adapter, ranks, sorted(learned), base_name, transposed=transposed)
    _write(tensors, config, base, dtype, out, check)
    return Exported(len(ranks), sum(tensor.numel() for tensor in tensors.values()))


def _write(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    base: Mapping[str, str],
    dtype: torch.dtype,
    out: Path,
    check: Callable[[Path], None],
) -> None:
    """The folder, whole or not at all."""
    stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    with out_folder(out) as partial:
        save_file(stored, partial / WEIGHTS, metadata={"format": "pt"})
        _write_json(partial / CONFIG, config)
        _write_json(partial / ORIGIN, {"bigtrain_version": __version__, "base": dict(base)})
        check(partial)


def _virtual_tokens(
    weights: Mapping[str, Tensor], settings: ModelSettings, adapter: AdapterSettings, base_name: str
) -> tuple[Tensor, dict[str, Any]]:
    """The embeddings of virtual tokens [P, C], or keys and values of all layers side by side [P, layers 2 K D]; and
    adapter_config.json. Raises BigtrainError."""
    if settings.architecture != "decoder":
        raise BigtrainError(
            "peft puts virtual tokens in front of what a decoder reads, and of nothing else here",
            found=f"model.architecture {settings.architecture}",
            wanted="a decoder",
            fix="use the run with `bigtrain eval`",
        )
    config = {
        "base_model_name_or_path": base_name,
        "task_type": _TASKS[settings.architecture],
        "inference_mode": True,
        "num_virtual_tokens": adapter.num_virtual_tokens,
        "num_transformer_submodules": 1,
        "num_layers": settings.num_hidden_layers,
    }
    if adapter.method == "prompt_tuning":
        config |= {
            "peft_type": "PROMPT_TUNING",
            "token_dim": settings.embedding_width,
            "num_attention_heads": settings.num_attention_heads,
            "prompt_tuning_init": "RANDOM",
        }
        return weights[f"prompt.{PROMPT}"], config
    names = [f"layers.{layer}.self_attn.prefix" for layer in range(settings.num_hidden_layers)]
    parts = [weights[f"{name}.{part}"] for name in names for part in (PREFIX_KEY, PREFIX_VALUE)]
    config |= {
        "peft_type": "PREFIX_TUNING",
        "token_dim": settings.key_value_heads * settings.head_width,
        "num_attention_heads": settings.key_value_heads,
        "encoder_hidden_size": settings.hidden_size,
        "prefix_projection": False,
    }
    return torch.cat(parts, dim=1), config


def _parts(each: WeightMap, part: str) -> list[str]:
    """The names of a part of the adapters of our layers."""
    return [f"{name.rpartition('.')[0]}.{part}" for name in each.ours if name.endswith(".weight")]


def _theirs_of(each: WeightMap, trained: Collection[str]) -> Sequence[str]:
    return each.theirs if any(name in trained for name in each.ours) else ()


def _low_rank(each: WeightMap, weights: Mapping[str, Tensor], adapter: AdapterSettings) -> dict[str, Tensor]:
    """The parts of one adapter there, by our names of parts."""
    layout = _of_rows(each)
    firsts = [weights.get(name) for name in _parts(each, LORA_A)]
    seconds = [weights.get(name) for name in _parts(each, LORA_B)]
    blocks = sum(second is not None for second in seconds)
    columns, padded = 0, []
    for name, second in zip(each.ours, seconds, strict=True):
        block = torch.zeros(weights[name].shape[0], blocks * adapter.r)
        if second is not None:
            block[:, columns : columns + adapter.r] = second
            columns += adapter.r
        padded.append(block)
    made = {
        LORA_A: torch.cat([first for first in firsts if first is not None]),
        LORA_B: layout.to_theirs(padded)[0],
    }
    if adapter.method == "dora":  # a row without an adapter keeps its length
        named = zip(each.ours, _parts(each, MAGNITUDE), strict=True)
        lengths = [weights[of] if of in weights else row_lengths(weights[name]) for name, of in named]
        made[MAGNITUDE] = layout.to_theirs(lengths)[0]
    return made


def _of_rows(each: WeightMap) -> TensorLayout:
    """How rows of ours become rows of theirs, whichever way a matrix lies there. Raises BigtrainError."""
    if isinstance(each.layout, Joined):
        return Joined()
    if isinstance(each.layout, ByHead):
        return each.layout
    raise BigtrainError(
        f"peft cannot adapt {each.theirs[0]}: it is no linear layer at Hugging Face",
        found=f"an adapter of {', '.join(each.ours)}",
        wanted="adapters of linear layers",
        fix="export the merged model: bigtrain export RUN OUT --to hf --merge",
    )


def _their_part(part: str) -> str:
    return part if part == MAGNITUDE else f"{part}.weight"


def _config(
    settings: ModelSettings,
    adapter: AdapterSettings,
    ranks: Mapping[str, int],
    learned: list[str],
    base_name: str,
    *,
    transposed: bool,
) -> dict[str, Any]:
    """adapter_config.json."""
    others = {module: rank for module, rank in ranks.items() if rank != adapter.r}
    # A module that is made of n of ours has n times their rank, and an alpha that keeps the scaling.
    powers = {module: rank / adapter.r for module, rank in others.items()}
    alphas = {
        module: adapter.lora_alpha * (times**0.5 if adapter.use_rslora else times) for module, times in powers.items()
    }
    return {
        "peft_type": "LORA",
        "task_type": _TASKS_OF_HEADS.get(settings.task_head, _TASKS.get(settings.architecture)),
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": adapter.r,
        "lora_alpha": adapter.lora_alpha,
        "lora_dropout": adapter.lora_dropout,
        "use_rslora": adapter.use_rslora,
        "use_dora": adapter.method == "dora",
        "target_modules": list(ranks),
        "modules_to_save": learned or None,
        "rank_pattern": others,
        "alpha_pattern": alphas,
        "bias": "none",
        "fan_in_fan_out": transposed,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

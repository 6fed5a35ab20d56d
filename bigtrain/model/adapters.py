"""Adapters in a model: which layers have one, which parameters learn, what a merged model's weights are.

build_model --adapt--> a model whose parameters do not learn, but for those that the adapter adds
weights of base and adapter --Merged--> weights of a model without adapter that computes the same
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from bigtrain.base import BigtrainError
from bigtrain.config import AdapterSettings
from bigtrain.model.adapter_parts import (
    BLOCKS,
    LORA_A,
    LORA_B,
    MAGNITUDE,
    TASK_HEAD,
    is_of_adapter,
    matching,
    require_rank,
)
from bigtrain.model.attention.attention import SelfAttention
from bigtrain.model.attention.virtual_tokens import PromptEmbedding, VirtualKeys
from bigtrain.model.layers.adapted import ADAPTED, AdaptedLinear, changed_weight, row_lengths
from bigtrain.model.transformer import BlockStack

T = TypeVar("T")


def adapt(model: nn.Module, settings: AdapterSettings) -> None:
    """Give a model an adapter, in place: its parameters no longer learn, but for the adapter's and those of
    `modules_to_save`. Their names stay.

    Raises:
        BigtrainError: a pattern matches nothing, r is larger than a matrix, or a module to save has an adapter.
    """
    if settings.virtual_tokens:
        _put_virtual_tokens(model, settings)
    else:
        _adapt_layers(model, settings)
    modules = {name: module for name, module in model.named_modules() if name}
    saved = [modules[name] for name in matching("modules_to_save", settings.modules_to_save, list(modules))]
    for module in saved:
        if any(isinstance(part, AdaptedLinear) for part in module.modules()):
            raise BigtrainError(
                "a module of adapter.modules_to_save holds a layer that has an adapter, too",
                found=next(name for name, each in modules.items() if each is module),
                wanted="a layer that learns as a whole, or by an adapter",
                fix="narrow the patterns of adapter.modules_to_save or adapter.target_modules",
            ).on_all_ranks()
    whole = {id(parameter) for module in saved for parameter in module.parameters()}
    for name, parameter in model.named_parameters():
        of_task = name.startswith(TASK_HEAD)  # the base has another head, or none
        parameter.requires_grad_(is_of_adapter(name) or of_task or id(parameter) in whole)


def _adapt_layers(model: nn.Module, settings: AdapterSettings) -> None:
    """Put adapted layers in the place of linear ones."""
    linears = _in_blocks(model, nn.Linear)
    for name in matching("target_modules", settings.targets, list(linears)):
        plain = linears[name]
        if settings.low_rank:
            require_rank(name, settings.r, plain.out_features, plain.in_features)
        block, _, last = name.rpartition(".")
        place = name.split("layers.")[1].partition(".")[2]
        setattr(model.get_submodule(block), last, ADAPTED[settings.method](plain, settings, place))


def _put_virtual_tokens(model: nn.Module, settings: AdapterSettings) -> None:
    """Put virtual tokens in front of every document: their keys and values in every layer, or their embeddings."""
    count = settings.virtual_tokens
    for layer in _in_blocks(model, SelfAttention).values() if settings.method == "prefix_tuning" else ():
        layer.prefix = VirtualKeys(count, layer.k_proj.out_features // layer.head_width, layer.head_width)
    for module in list(model.modules()):
        if isinstance(module, BlockStack):
            module.virtual_tokens = count
            if settings.method == "prompt_tuning":
                module.prompt = PromptEmbedding(count, module.settings.embedding_width)


def _in_blocks(model: nn.Module, kind: type[T]) -> dict[str, T]:
    """The modules of a kind inside the blocks, by name."""
    named = model.named_modules()
    return {name: module for name, module in named if isinstance(module, kind) and name.startswith(BLOCKS)}


def first_magnitude(name: str, weights: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor | None:
    """The first value [out] of a parameter where it follows from another one: the lengths of a weight's rows.

    Args:
        name: of the parameter; None for all but DoRA's magnitudes.
        weights: of the base.
        dtype: in which the model computes with the weight.
    """
    layer, _, part = name.rpartition(".")
    return row_lengths(weights[f"{layer}.weight"].to(dtype)) if part == MAGNITUDE else None


class Merged(Mapping[str, Tensor]):
    """The weights of a model without adapter that computes what one with a LoRA or DoRA computes; each made when it is
    asked for, in float32 at least."""

    def __init__(self, weights: Mapping[str, Tensor], settings: AdapterSettings) -> None:
        """Args:
        weights: of base and adapter, by our names.
        settings: of the adapter.
        """
        self._weights, self._scaling = weights, settings.scaling

    def __getitem__(self, name: str) -> Tensor:
        layer, weight = name.rpartition(".")[0], self._weights[name]
        if not name.endswith(".weight") or f"{layer}.{LORA_A}" not in self._weights:
            return weight
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        a, b = (self._weights[f"{layer}.{part}"].to(weight.dtype) for part in (LORA_A, LORA_B))
        changed = changed_weight(weight, a, b, self._scaling)
        if (magnitude := f"{layer}.{MAGNITUDE}") not in self._weights:
            return changed
        return changed * (self._weights[magnitude] / row_lengths(changed))[:, None]

    def __contains__(self, name: object) -> bool:  # else it would be read to answer
        return name in self._weights and not is_of_adapter(str(name))

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._weights if not is_of_adapter(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

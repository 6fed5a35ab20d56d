"""Every tensor of a model at Hugging Face, and what it is made of here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bigtrain.config import ModelSettings
from bigtrain.convert.families import family_of
from bigtrain.convert.family import Module
from bigtrain.convert.layouts import ByHead, HeadsLast, Joined, OneRow, Stacked, TensorLayout
from bigtrain.model import build_model

FOR_TRAINING_ONLY = "next_token_layers."
"""Names of the blocks of multi-token prediction begin with this: no family at Hugging Face has them."""

_LAYOUTS: Mapping[str, TensorLayout] = {"joined": Joined(), "conv1d": Joined(transposed=True), "experts": Stacked()}


@dataclass(frozen=True)
class WeightMap:
    """Tensors of theirs and of ours that hold the same numbers."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    layout: TensorLayout

    def to_theirs(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their tensors by name, from ours: weights, gradients, or shapes alone."""
        return dict(zip(self.theirs, self.layout.to_theirs([ours[name] for name in self.ours]), strict=True))

    def to_ours(self, theirs: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Our tensors by name, from theirs. `shapes`: of ours."""
        tensors = self.layout.to_ours([theirs[name] for name in self.theirs], [shapes[name][0] for name in self.ours])
        return dict(zip(self.ours, tensors, strict=True))


def without_training_only(settings: ModelSettings) -> ModelSettings:
    """The model without the blocks that predict tokens further ahead, which an export leaves out."""
    return settings.model_copy(update={"num_nextn_predict_layers": 0})


def our_shapes(settings: ModelSettings) -> dict[str, torch.Size]:
    """The parameters that an exchange moves, by name."""
    with torch.device("meta"):
        model = build_model(without_training_only(settings))
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def weight_maps(settings: ModelSettings, shapes: Mapping[str, torch.Size] | None = None) -> list[WeightMap]:
    """The maps that cover all parameters, in the order of the files. A tied head is not stored twice.

    Args:
        settings: of a model that the family can express.
        shapes: what `our_shapes` says, where it is known already.
    """
    shapes = our_shapes(settings) if shapes is None else shapes
    maps = list(_maps(settings, shapes))
    covered = [name for each in maps for name in each.ours]
    assert sorted(covered) == sorted(shapes), set(covered) ^ set(shapes)  # else a family's table is wrong
    return maps


def their_shapes(maps: Sequence[WeightMap], shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    """Their tensors in order, from the shapes of ours."""
    ours = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return {name: tensor.shape for each in maps for name, tensor in each.to_theirs(ours).items()}


def _maps(settings: ModelSettings, shapes: Mapping[str, torch.Size]) -> Iterator[WeightMap]:
    of_layers: list[Module] = []
    for module in family_of(settings).modules:
        if module.gated not in (None, settings.gated_mlp):
            continue
        if "{}" in module.ours[0]:
            of_layers.append(module)
            continue
        if of_layers:  # the first module after the layers
            for layer in range(_layers_like(of_layers[0], settings)):
                for each in of_layers:
                    yield from _of_module(each, layer, settings, shapes)
            of_layers = []
        yield from _of_module(module, None, settings, shapes)


def _layers_like(module: Module, settings: ModelSettings) -> int:
    """How many layers there are of those that this module is in."""
    if settings.architecture == "encoder_decoder" and not module.ours[0].startswith("encoder."):
        return settings.decoder_layers
    return settings.distinct_layers


def _of_module(
    module: Module, layer: int | None, settings: ModelSettings, shapes: Mapping[str, torch.Size]
) -> Iterator[WeightMap]:
    at = () if layer is None else (layer,)
    ours = tuple(name.format(*at) for name in module.ours)
    if module.layout == "experts":
        if ours[0] in shapes:
            theirs = tuple(module.theirs.format(*at, expert) + ".weight" for expert in range(settings.num_experts))
            yield WeightMap(theirs, ours, _LAYOUTS["experts"])
        return
    if module.layout in ("row", "heads_last", "heads_last_transposed"):
        heads = HeadsLast(settings.num_attention_heads, module.layout == "heads_last_transposed")
        present = tuple(name for name in ours if name in shapes)
        whole = OneRow(settings.vocab_size) if module.layout == "row" else heads
        yield WeightMap((module.theirs.format(*at),), present, whole)
        return
    layout = ByHead(settings.num_attention_heads) if module.layout == "by_head" else _LAYOUTS[module.layout]
    for suffix in (".weight", ".bias"):
        if ours[0] + suffix in shapes:
            yield WeightMap((module.theirs.format(*at) + suffix,), tuple(name + suffix for name in ours), layout)

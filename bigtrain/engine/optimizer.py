"""Which optimizer updates which parameter, and how: by names and settings alone.

Nothing of it is saved. A checkpoint holds tensors by name, and the next start derives the treatment of each from its
settings again, at any ZeRO stage and world size.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from bigtrain.base import BigtrainError
from bigtrain.config import OptimizerSettings, ParameterGroup
from bigtrain.engine.lion import Lion
from bigtrain.engine.muon import Muon

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "lion": ("exp_avg",), "muon": ("momentum_buffer",)}
"""What each algorithm remembers of a parameter: tensors of its size."""


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """The optimizer over all trainable parameters of the model, in the groups of `parameter_groups`.

    AdamW (Loshchilov and Hutter, 2019, algorithm 2) is PyTorch's own fused kernel, on CPU and CUDA: DeepSpeed's has to
    be compiled at first start.

    A frozen parameter, one whose `lr_scale` is 0, gets a gradient of zeros: it counts neither in the gradient's norm
    nor in its clipping, at any ZeRO stage, and its moments stay 0. It stays in the optimizer, so that a checkpoint
    holds it and a later start may train it.

    Raises:
        BigtrainError: one of `optimizer.groups` is for no parameter of this model, or all are frozen.
    """
    groups = parameter_groups(model, settings)
    for group in groups:
        if group["lr_scale"] == 0:
            for parameter in group["params"]:
                parameter.register_hook(torch.zeros_like)
    if groups and all(group["lr_scale"] == 0 for group in groups):
        raise BigtrainError(
            "optimizer.groups freeze every parameter, so there is nothing to train",
            found="lr_scale 0 for all of them",
            wanted="an lr_scale above 0 for some parameter",
            fix="narrow the patterns of the groups with lr_scale 0; `bigtrain eval` evaluates without training",
        ).on_all_ranks()
    if settings.name == "lion":
        return Lion(groups, betas=settings.betas)
    if settings.name == "muon":
        return Muon(groups, momentum=settings.momentum, betas=settings.betas, eps=settings.eps)
    return AdamW(groups, betas=settings.betas, eps=settings.eps, fused=True)


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """The parameters with equal treatment together: name, params, algorithm, weight_decay and lr_scale.

    Matrices decay, the token embedding among them: as an output projection it is a matrix like any other, and GPT-2,
    Llama and OLMo decay it too. Norms, biases and every other vector do not. Muon has the matrices inside the blocks,
    each expert's by itself, and leaves the rest to AdamW. Rates are those that the model asks for, where it has a
    method `lr_scales`, for `optimizer.layer_lr_decay`; `optimizer.groups` changes decay or rate of what it matches. A
    tied embedding is one parameter, under the name `named_parameters` gives it first.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    chosen = _chosen(list(parameters), settings.groups)
    asked: Any = getattr(model, "lr_scales", lambda layer_decay: {})
    lr_scales: dict[str, float] = asked(settings.layer_lr_decay)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO 3 hides the shape
        by_muon = settings.name == "muon" and len(shape) in (2, 3) and "layers." in name
        group: dict[str, Any] = {
            "name": "muon" if by_muon else "decay" if len(shape) >= 2 else "no_decay",
            "algorithm": "adamw" if settings.name == "muon" and not by_muon else settings.name,
            "weight_decay": settings.weight_decay if len(shape) >= 2 else 0.0,
            "lr_scale": lr_scales.get(name, 1.0),
        }
        if group["lr_scale"] != 1:
            group["name"] += f", rate x {group['lr_scale']:.6g}"
        if name in chosen:
            number, other = chosen[name]
            group["name"] += f", optimizer.groups.{number}"
            group["lr_scale"] *= other.lr_scale
            if other.weight_decay is not None:
                group["weight_decay"] = other.weight_decay
        group = groups.setdefault(group["name"], {**group, "params": []})
        group["params"].append(parameter)
        if by_muon:
            group.setdefault("matrices", {})[name] = shape
    return list(groups.values())


def create_moments(optimizer: Optimizer, owners: Mapping[torch.Tensor, str]) -> None:
    """Give each owner the state that its algorithm would make at its first step, so that there is always something to
    save or load: a step counter on the owner's device, float32 as torch.optim.AdamW has it, and the moments.

    Args:
        optimizer: made by `build_optimizer`.
        owners: the tensors that it updates, with the algorithm that does.
    """
    for owner, algorithm in owners.items():
        optimizer.state[owner] = {
            "step": torch.zeros((), dtype=torch.float32, device=owner.device),
            **{moment: torch.zeros_like(owner, requires_grad=False) for moment in MOMENTS[algorithm]},
        }


def _chosen(names: list[str], groups: tuple[ParameterGroup, ...]) -> dict[str, tuple[int, ParameterGroup]]:
    """The group of `optimizer.groups`, with its number, of each parameter that is in one: the first that matches."""
    chosen: dict[str, tuple[int, ParameterGroup]] = {}
    for number, group in enumerate(groups):
        matching = [name for name in names if fnmatchcase(name, group.match)]
        free = [name for name in matching if name not in chosen]
        if not matching:
            raise BigtrainError(
                f"optimizer.groups.{number}.match matches no parameter",
                found=group.match,
                wanted=f"a pattern for whole names such as {', '.join(_near(group.match, names))}",
                fix="correct the pattern (* stands for anything), or remove the group",
            ).on_all_ranks()
        if not free:
            raise BigtrainError(
                f"optimizer.groups.{number} is for nothing: an earlier group matches all that it matches",
                found=f"{group.match}, after {chosen[matching[0]][1].match}",
                wanted="the special pattern before the general one: the first group that matches counts",
                fix=f"move optimizer.groups.{number} to the front, or remove it",
            ).on_all_ranks()
        chosen |= dict.fromkeys(free, (number, group))
    return chosen


def _near(pattern: str, names: list[str]) -> list[str]:
    word = pattern.replace("*", "")
    containing = [name for name in names if word and word in name]
    return containing[:3] or get_close_matches(word, names, n=3, cutoff=0.4) or names[:3]

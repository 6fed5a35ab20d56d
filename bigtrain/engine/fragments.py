"""Where ZeRO keeps the training state: for each parameter, the piece of it that this rank owns.

Every stage gives the same structure: a torch optimizer over *owners* (flat float32 tensors), of which each
parameter takes a range:

    stage 0     the owner is the parameter itself, whole, on every rank
    stage 1, 2  one owner per parameter group: this rank's part of the group's parameters laid end to end;
                `param._hp_mapping` says which range of it belongs to which range of the parameter
    stage 3     every parameter is cut into world_size equal parts (the last padded); the owner is a sub-group of
                parameters' parts laid end to end; `grad_position` says where

All of it is read from DeepSpeed 0.19.8 and guarded by the tests that move state between all stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bigtrain.checkpoint import MASTER, Fragment, TensorShard
from bigtrain.engine.topology import Topology


@dataclass(frozen=True)
class OwnedRange:
    """Elements [offset, offset + length) of a flattened parameter lie at owner[start : start + length]."""

    name: str
    shape: tuple[int, ...]
    """Of the parameter as this rank's model has it: of a shard, where matrices are shared."""
    offset: int
    length: int
    owner: torch.Tensor
    start: int


@dataclass(frozen=True)
class ParameterPart:
    """What a parameter of this rank's model is a part of, and who has the same part."""

    shape: tuple[int, ...]
    shard: TensorShard | None
    holder: int
    holders: int


def owners(optimizer: Optimizer, wrapper: Any, stage: int) -> dict[torch.Tensor, str]:
    """The flat float32 tensors that the torch optimizer updates on this rank, each with the algorithm of its group.

    The n-th owner of one rank and that of another hold parts of the same parameters.

    Args:
        optimizer: the torch optimizer, whose parameters DeepSpeed has replaced by its owners.
        wrapper: DeepSpeed's optimizer around it.
    """
    if stage == 3:  # between steps stage 3 hides them from the torch optimizer
        groups = [optimizer.param_groups[index] for _, index in sorted(wrapper.sub_group_to_group_id.items())]
        return {
            owner: group["algorithm"] for owner, group in zip(wrapper.fp32_partitioned_groups_flat, groups, strict=True)
        }
    return {owner: group["algorithm"] for group in optimizer.param_groups for owner in group["params"]}


def owned_ranges(model: nn.Module, optimizer: Optimizer, wrapper: Any, stage: int) -> list[OwnedRange]:
    """The ranges of the parameters that learn which this rank owns, in the order of the model's parameters."""
    # DeepSpeed hangs attributes of its own on parameters.
    named: list[tuple[str, Any]] = [each for each in model.named_parameters() if each[1].requires_grad]
    if stage == 0:
        return [
            OwnedRange(name, tuple(parameter.shape), 0, parameter.numel(), parameter, 0) for name, parameter in named
        ]
    return list(_of_stage_3(named, wrapper) if stage == 3 else _of_stages_1_and_2(named, optimizer))


def _of_stages_1_and_2(named: Iterable[tuple[str, Any]], optimizer: Optimizer) -> Iterator[OwnedRange]:
    for name, parameter in named:
        mapping = parameter._hp_mapping
        if mapping is None:  # this parameter lies wholly on other ranks
            continue
        inside, within = mapping.hp_fragment_address, mapping.lp_fragment_address
        (owner,) = optimizer.param_groups[mapping.param_group_index]["params"]
        yield OwnedRange(name, tuple(parameter.shape), within.start, inside.numel, owner, inside.start)


def _of_stage_3(named: Iterable[tuple[str, Any]], wrapper: Any) -> Iterator[OwnedRange]:
    for name, parameter in named:
        sub_group, start, padded = wrapper.grad_position[wrapper.get_param_id(parameter)]
        offset = parameter.ds_tensor.ds_numel * wrapper._get_param_partition_rank(parameter)
        length = min(padded, parameter.ds_numel - offset)
        if length > 0:  # else all padding
            owner = wrapper.fp32_partitioned_groups_flat[sub_group]
            yield OwnedRange(name, tuple(parameter.ds_shape), offset, length, owner, start)


def places(model: nn.Module, topology: Topology, stage: int) -> dict[str, ParameterPart]:
    """Where each parameter belongs, by name.

    AutoTP hangs on every parameter of a layer that it has replaced how it was cut; others are whole on each rank of the
    group. Stage 0 has all on every rank.
    """
    holder, holders = (topology.rank, topology.world_size) if stage == 0 else (0, 1)
    by_name = {}
    for name, parameter in model.named_parameters():
        cut: dict[str, Any] = getattr(parameter, "ds_autotp_universal_checkpoint_meta", {})
        dim, sizes = cut.get("partition_dim"), cut.get("partition_sizes")
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        if dim is None or sizes is None:
            shared = topology.tensor_size > 1
            by_name[name] = ParameterPart(
                shape, None, *((topology.shard_rank, topology.tensor_size) if shared else (holder, holders))
            )
            continue
        start = sum(sizes[: topology.shard_rank])
        whole = (*shape[:dim], sum(sizes), *shape[dim + 1 :])
        by_name[name] = ParameterPart(whole, TensorShard(dim, start, sizes[topology.shard_rank]), holder, holders)
    return by_name


def fragments(optimizer: Optimizer, ranges: list[OwnedRange], places: dict[str, ParameterPart]) -> list[Fragment]:
    """Views of the master weights and of every moment, cut at the parameters' bounds."""
    pieces = []
    for each in ranges:
        state = optimizer.state[each.owner]
        tensors = {MASTER: each.owner.detach(), **{kind: value for kind, value in state.items() if value.ndim > 0}}
        for kind, tensor in tensors.items():
            view = tensor.view(-1)[each.start : each.start + each.length]
            place = places[each.name]
            pieces.append(
                Fragment(each.name, kind, place.shape, each.offset, view, place.shard, place.holder, place.holders)
            )
    return pieces

"""The end of a step for a model with auxiliary losses: their sums over the ranks, and the routers' biases moved."""

from __future__ import annotations

import torch

from bigtrain.engine import Topology
from bigtrain.model import LanguageModel


def settle(model: LanguageModel, topology: Topology, label_tokens: int, *, move: bool) -> dict[str, float]:
    """Sum the counts since the last call over all ranks. Every rank calls it.

    Args:
        model: the model in training.
        topology: the ranks.
        label_tokens: of the global batch.
        move: whether the routers' biases may move; they stay in a step without an update.

    Returns:
        Each auxiliary loss by name, a mean over the labelled tokens, without its coefficient; and `router_imbalance`,
        the load of the busiest expert as a multiple of its router's mean, at the worst router. Empty for a model
        without experts and multi-token prediction.
    """
    counted = model.auxiliary.take()
    if not counted.losses:
        return {}
    totals = topology.sum_across_ranks([*counted.losses.values(), *map(float, counted.loads.flatten().tolist())])
    values = {name: total / label_tokens for name, total in zip(counted.losses, totals, strict=False)}
    if counted.loads.numel():
        loads = torch.tensor(totals[len(values) :], dtype=torch.float64).view(counted.loads.shape)
        values["router_imbalance"] = float((loads.amax(dim=1) / loads.mean(dim=1).clamp(min=1e-9)).max())
        for router, load in zip(model.routers().values(), loads.long(), strict=True):
            if move:
                router.move(load)
    return values

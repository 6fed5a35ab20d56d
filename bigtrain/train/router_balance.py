"""The end of a step for a model that counts something beside its loss: what the ranks found together is recorded, and
the routers of experts move their biases by it."""

from __future__ import annotations

import torch

from bigtrain.engine.topology import Topology
from bigtrain.model import Decoder


def settle(model: Decoder, topology: Topology, label_tokens: int, *, move: bool) -> dict[str, float]:
    """Sum over the ranks what was counted since this was called last. Every rank has to call it.

    Args:
        model: the one under training.
        topology: the ranks.
        label_tokens: of the global batch.
        move: whether the routers' biases may move: not in a step without an update.

    Returns:
        For metrics.jsonl: each auxiliary loss, a mean over the labelled tokens, without its coefficient; and
        `router_imbalance`, the load of the busiest expert as a multiple of its router's mean, at the worst router.
        Nothing for a model without experts and multi-token prediction.
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

"""Trains the cases of one world size with the real model and engine; rank 0 writes losses and gradient norms.

One launch for many cases: importing DeepSpeed takes longer than most of them.
"""

import json
import sys
from pathlib import Path

import torch
from deepspeed.utils import groups
from parity import ROWS, STEPS, Case, learning_rate, micro_batch, rows, settings

from bigtrain.engine.engine import Engine
from bigtrain.engine.topology import Topology, leave, share_samples, start
from bigtrain.run.setup import new_model


def train(case: Case, alone: Topology) -> dict[str, list[float]]:
    topology = share_samples(alone, case.tensor, case.sequence)
    chosen = settings(case)
    engine = Engine(new_model(chosen, topology, fill=True), chosen, topology)
    share = ROWS // topology.data_size
    losses, norms = [], []
    for step in range(STEPS):
        batch = rows(step)
        labelled = int((batch["labels"] != -100).sum())
        total = 0.0
        for first in range(topology.data_rank * share, (topology.data_rank + 1) * share, case.micro_batch_size):
            inputs = micro_batch(batch, first, first + case.micro_batch_size)
            total += float(engine.forward_backward(inputs, 1 / labelled))
        result = engine.step(learning_rate(step))
        assert result.applied
        losses.append(topology.sum_across_ranks([total])[0] / labelled)
        norms.append(result.grad_norm)
    return {"losses": losses, "norms": norms}


def forget_the_last_case() -> None:
    """DeepSpeed keeps some things for the life of a process, which a run never has two of."""
    torch.nn.functional.linear = plain_linear  # stage 3 replaces it
    for name in ("_TENSOR_MODEL_PARALLEL_GROUP", "_DATA_PARALLEL_GROUP", "_MODEL_PARALLEL_GROUP"):
        setattr(groups, name, None)
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
    groups.mpu = None


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    plain_linear = torch.nn.functional.linear
    topology = start(timeout_minutes=1)
    results = []
    for fields in json.loads((directory / "job.json").read_text()):
        forget_the_last_case()
        results.append(train(Case(**fields), topology))
    if topology.rank == 0:
        (directory / "result.json").write_text(json.dumps(results))
    topology.barrier()
    topology.shutdown()
    leave(0)

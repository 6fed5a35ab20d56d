"""Jobs for one world size with the real model and engine; rank 0 writes what came out.

One launch for many jobs: importing DeepSpeed takes longer than most of them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import groups

from bigtrain.checkpoint import Checkpoint, Cursor, StorageTiers, load, save
from bigtrain.config import mathematics
from bigtrain.engine.engine import Engine
from bigtrain.engine.topology import Topology, leave, share_samples, start
from bigtrain.model import count_parameters
from bigtrain.train.build import new_model
from bigtrain.train.dry_run import dry_run, worst_case
from bigtrain.train.router_balance import settle
from tests.train.parity import ROWS, STEPS, Case, batch_for, learning_rate, micro_batch, settings


class Training:
    """One case in progress."""

    def __init__(self, case: Case, alone: Topology, fill: bool = True) -> None:
        forget_the_last_one()
        self.case, self.topology = case, share_samples(alone, case.tensor, case.sequence)
        self.settings = settings(case)
        self.engine = Engine(new_model(self.settings, self.topology, fill=fill), self.settings, self.topology)

    def train(self, steps: range) -> dict[str, list[Any]]:
        share, micro = ROWS // self.topology.data_size, self.case.micro_batch_size
        losses, norms, counted = [], [], []
        for step in steps:
            batch = batch_for(self.case, step)
            self.engine.module.at_step(step)
            labelled = int((batch["labels"] != -100).sum())
            total = 0.0
            for first in range(self.topology.data_rank * share, (self.topology.data_rank + 1) * share, micro):
                inputs = micro_batch(batch, first, first + micro)
                total += float(self.engine.forward_backward(inputs, 1 / labelled))
            result = self.engine.step(learning_rate(step))
            assert result.applied
            losses.append(self.topology.sum_across_ranks([total])[0] / labelled)
            norms.append(result.grad_norm)
            counted.append(settle(self.engine.module, self.topology, labelled, move=True))
        return {"losses": losses, "norms": norms, "counted": counted}

    def state(self) -> list[Any]:
        """All that a checkpoint would hold of this rank."""
        engine = self.engine
        tensors = [*(fragment.data for fragment in engine.fragments()), *engine.rng_state().values()]
        return [[t.tolist() for t in tensors], engine.optimizer_steps, engine.loss_scaler()]

    def save(self, run: str, step: int) -> None:
        save(
            StorageTiers.of(Path(run)),
            Cursor(step, step * ROWS, "plan", self.engine.optimizer_steps),
            self.engine.fragments(),
            self.engine.rng_state(),
            mathematics=mathematics(self.settings),
            zero_stage=self.case.stage,
            state={"loss_scaler": self.engine.loss_scaler()},
            ranks=self.topology,
        )

    def load(self, run: str, step: int) -> None:
        checkpoint = Checkpoint.at(Path(run) / "checkpoints" / f"step-{step:08d}")
        summary = load(checkpoint, self.engine.fragments(), ranks=self.topology).summary
        self.engine.restore(summary.cursor.optimizer_steps, summary.state["loss_scaler"])


def curve(alone: Topology, case: Case) -> dict[str, list[Any]]:
    """The whole of it."""
    return Training(case, alone).train(range(STEPS))


def train_and_save(alone: Topology, case: Case, to: str, steps: int) -> dict[str, list[Any]]:
    """Save half-way, and go on: what a resumed run has to repeat."""
    training = Training(case, alone)
    training.train(range(steps))
    training.save(to, steps)
    return training.train(range(steps, 2 * steps))


def resume(alone: Topology, case: Case, at: str, steps: int) -> dict[str, list[Any]]:
    """With a dry run, as a start has: it must not be seen in the curve."""
    training = Training(case, alone, fill=False)
    training.load(at, steps)
    dry_run(training.engine, training.settings, training.topology)
    return training.train(range(steps, 2 * steps))


def undisturbed(alone: Topology, case: Case, steps: int) -> dict[str, Any]:
    return Training(case, alone).train(range(2 * steps))


def rehearsed(alone: Topology, case: Case, steps: int) -> dict[str, Any]:
    """The same with a dry run before the first step and half-way, and this rank's state before and after that one."""
    training = Training(case, alone)
    dry_run(training.engine, training.settings, training.topology)
    first = training.train(range(steps))
    before = training.state()
    dry_run(training.engine, training.settings, training.topology)
    after = training.state()
    second = training.train(range(steps, 2 * steps))
    training.engine.forward_backward(worst_case(training.settings, alone.device), 1.0)
    return {
        **{key: first[key] + second[key] for key in first},
        **{"state_before": before, "state_after": after, "held": training.engine.held_bytes()},
        "parameters": count_parameters(training.settings.model),
    }


def resave(alone: Topology, case: Case, at: list[str], to: list[str], steps: int) -> None:
    """Load one checkpoint after the other into one engine, and save what it then has."""
    training = Training(case, alone, fill=False)
    for source, target in zip(at, to, strict=True):
        training.load(source, steps)
        training.save(target, steps)


def forget_the_last_one() -> None:
    """DeepSpeed keeps some things for the life of a process, which a run never has two of."""
    torch.nn.functional.linear = plain_linear  # stage 3 replaces it
    for name in ("_TENSOR_MODEL_PARALLEL_GROUP", "_DATA_PARALLEL_GROUP", "_MODEL_PARALLEL_GROUP"):
        setattr(groups, name, None)
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
    groups.mpu = None


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    plain_linear = torch.nn.functional.linear
    topology = start(timeout_minutes=5)
    jobs: list[dict[str, Any]] = json.loads((directory / "job.json").read_text())
    results = [globals()[job.pop("do")](topology, Case(**job.pop("case")), **job) for job in jobs]
    if topology.rank == 0:
        (directory / "result.json").write_text(json.dumps(results))
    topology.barrier()
    topology.shutdown()
    leave(0)

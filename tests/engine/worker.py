"""Runs a list of jobs through the engine, on as many ranks as it was launched with; rank 0 writes the results.

One launch for many jobs: importing DeepSpeed takes longer than all of them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch

from bigtrain.checkpoint import Checkpoint, Cursor, StorageTiers, load, load_weights, save
from bigtrain.config import mathematics
from bigtrain.engine.engine import Engine
from bigtrain.engine.topology import leave, start
from tests.engine.helpers import build, learning_rate, settings, train


def parity(job: dict[str, Any]) -> dict[str, Any]:
    return train(new_engine(job), topology, job["case"], range(job["steps"]))


def not_finite(job: dict[str, Any]) -> dict[str, Any]:
    """One good step, one with an infinite gradient on the last rank only, one good step."""
    engine = new_engine(job)
    train(engine, topology, job["case"], range(1))
    before = [fragment.data.clone() for fragment in engine.fragments()]
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    last = topology.rank == topology.world_size - 1
    engine.forward_backward({"input_ids": tokens, "labels": tokens}, float("inf") if last else 1.0)
    result = engine.step(learning_rate(1))
    unchanged = all(torch.equal(a, b.data) for a, b in zip(before, engine.fragments(), strict=True))
    steps = engine.optimizer_steps
    after = train(engine, topology, job["case"], range(1, 2))["losses"][0]
    return {"applied": result.applied, "norm": result.grad_norm, "unchanged": unchanged, "steps": steps, "after": after}


def train_and_save(job: dict[str, Any]) -> dict[str, Any]:
    """Train, save half-way, and go on: what a resumed run has to repeat."""
    engine = new_engine(job)
    half = job["steps"]
    train(engine, topology, job["case"], range(half))
    commit(engine, job, half)
    return train(engine, topology, job["case"], range(half, 2 * half))


def resume(job: dict[str, Any]) -> dict[str, Any]:
    engine = new_engine(job)
    loaded = load(Checkpoint.at(job["from"]), engine.fragments(), ranks=topology)
    engine.restore(loaded.summary.cursor.optimizer_steps)
    assert loaded.rng is not None
    engine.set_rng_state(loaded.rng)
    half = loaded.summary.cursor.step
    return train(engine, topology, job["case"], range(half, 2 * half))


def reshard(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Load one checkpoint after the other into one engine, save each again, and look at the model's own weights."""
    engine = new_engine(job)
    results = []
    for source, target in zip(job["from"], job["to"], strict=True):
        loaded = load(Checkpoint.at(source), engine.fragments(), ranks=topology)
        engine.restore(loaded.summary.cursor.optimizer_steps)
        masters = load_weights(Checkpoint.at(source))
        stage_3 = job["case"]["stage"] == 3
        with deepspeed.zero.GatheredParameters(list(engine.module.parameters()), enabled=stage_3):
            same = all(torch.equal(p, masters[name].to(p.dtype)) for name, p in engine.module.named_parameters())
        commit(engine, {**job, "to": target}, loaded.summary.cursor.step)
        results.append({"weights_are_rounded_masters": same, "optimizer_steps": engine.optimizer_steps})
    return results


def new_engine(job: dict[str, Any]) -> Engine:
    torch.nn.functional.linear = plain_linear  # stage 3 replaces it for the whole process
    return Engine(build(job["case"]), settings(job["case"]), topology)


def commit(engine: Engine, job: dict[str, Any], step: int) -> None:
    save(
        StorageTiers.of(Path(job["to"])),
        Cursor(step, step * 8, "plan", engine.optimizer_steps),
        engine.fragments(),
        engine.rng_state(),
        mathematics=mathematics(settings(job["case"])),
        zero_stage=job["case"]["stage"],
        state={},
        ranks=topology,
    )


directory = Path(sys.argv[1])
plain_linear = torch.nn.functional.linear
topology = start(timeout_minutes=1)
jobs = json.loads((directory / "job.json").read_text())
results = [globals()[job["do"]](job) for job in jobs]
if topology.rank == 0:
    (directory / "result.json").write_text(json.dumps(results))
topology.barrier()
topology.shutdown()
leave(0)

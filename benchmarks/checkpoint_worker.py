"""What the processes of `benchmarks/checkpoint.py` do under torchrun: save in turns, or resume once.

    checkpoint_worker.py save   ...    one engine; every route saves the same state, and the steps go on beside it
    checkpoint_worker.py resume ...    import, build the engine, load by one route, do one step

The model, the engine and its settings are the same for all routes: bigtrain's own, which is DeepSpeed's engine with
the configuration of `bigtrain.engine.deepspeed_config`. The routes get at it from the inside.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from checkpoint_routes import Route

    from bigtrain.config import Settings
    from bigtrain.engine.engine import Engine
    from bigtrain.engine.topology import Topology

STARTED = "BENCHMARK_STARTED"
"""The variable with the time at which this program was launched."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("save", "resume"))
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--override", action="append", default=[])
    parser.add_argument("--route", default="bigtrain")
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints are")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--report", type=Path, required=True, help="file for what was measured")
    args = parser.parse_args()

    from bigtrain.config import load_settings
    from bigtrain.engine.topology import leave, start

    settings = load_settings(args.config, args.override)
    topology = start(timeout_minutes=5)
    measured = save_in_turns(args, settings, topology) if args.what == "save" else resume(args, settings, topology)
    if topology.rank == 0:
        args.report.write_text(json.dumps(measured))
    topology.barrier()
    topology.shutdown()
    leave(0)


def resume(args: argparse.Namespace, settings: Settings, topology: Topology) -> dict[str, Any]:
    """Seconds from the launch of the processes to each milestone of a resume."""
    from checkpoint_routes import route_of

    from bigtrain.engine.deepspeed_import import import_deepspeed

    way = route_of(args.route)
    import_deepspeed()
    milestones = {"imported": since_start()}
    engine = built_engine(settings, topology, fill=False)
    route = way(engine, topology, args.work)
    milestones["engine built"] = since_start()
    topology.barrier()
    with peak_memory() as memory:
        started = time.perf_counter()
        route.load()
        topology.barrier()
        seconds = time.perf_counter() - started
    milestones["loaded"] = since_start()
    state, owned = state_digest(engine, topology), owned_bytes(engine)
    checked = since_start() - milestones["loaded"]  # the check is ours, not a part of the resume
    loss = train_step(engine, settings, topology)
    milestones["first step"] = since_start() - checked
    return {
        "milestones": milestones,
        "load_seconds": seconds,
        "state": state,
        "loss": loss,
        "peak_extra_per_owned_byte": topology.broadcast(topology.reduce(memory["extra"] / owned, max)),
        "of_it_mapped_files": topology.broadcast(topology.reduce(memory["files"] / owned, max)),
    }


def save_in_turns(args: argparse.Namespace, settings: Settings, topology: Topology) -> dict[str, Any]:
    """Stall, slowdown, time until durable, size and memory of a save by each route, several times in turns."""
    from checkpoint_routes import SAVING, route_of

    from bigtrain.model import count_parameters

    engine = built_engine(settings, topology, fill=True)
    for _ in range(2):
        train_step(engine, settings, topology)
    owned, parameters = owned_bytes(engine), count_parameters(settings.model)
    routes: dict[str, Route] = {}
    measured: dict[str, dict[str, list[float]]] = {name: {} for name in SAVING}

    def note(name: str, what: str, value: float) -> None:
        """The worst of all ranks."""
        measured[name].setdefault(what, []).append(topology.broadcast(topology.reduce(value, max)))

    for name in SAVING:  # once to warm up and to see the memory: all that a route keeps for later saves counts
        with peak_memory() as memory:
            routes[name] = route_of(name)(engine, topology, args.work)
            routes[name].prepare()
            routes[name].save()
            routes[name].wait()
        note(name, "peak_extra_per_owned_byte", memory["extra"] / owned)
        note(name, "of_it_mapped_files", memory["files"] / owned)
        note(name, "bytes_per_parameter", routes[name].size() / parameters)
        clear(routes[name], topology)
    for repeat in range(args.repeats):
        order = list(SAVING[repeat % len(SAVING) :] + SAVING[: repeat % len(SAVING)])
        for name in order:
            beside, alone = [], 0.0
            if routes[name].asynchronous:
                alone = statistics.median(timed(train_step, engine, settings, topology) for _ in range(3))
            topology.barrier()
            started = time.perf_counter()
            routes[name].save()
            stall = time.perf_counter() - started
            while topology.broadcast(topology.reduce(not routes[name].done(), max)):
                beside.append(timed(train_step, engine, settings, topology))
            routes[name].wait()
            routes[name].make_durable()
            topology.barrier()
            note(name, "stall_seconds", stall)
            note(name, "lost_seconds", stall + sum(beside) - alone * len(beside))
            note(name, "durable_seconds", routes[name].durable_seconds or time.perf_counter() - started)
            if routes[name].asynchronous:
                note(name, "steps_beside", len(beside))
                note(name, "slowdown_of_steps_beside", statistics.median(beside) / alone)
                note(name, "step_seconds_alone", alone)
            clear(routes[name], topology)
        say(topology, f"repeat {repeat + 1}/{args.repeats}", measured)
    for name in ("bigtrain", "deepspeed", "dcp"):  # for the resumes
        routes[name].save()
        routes[name].wait()
        topology.barrier()
    state = state_digest(engine, topology)
    loss = train_step(engine, settings, topology)
    return {"routes": measured, "parameters": parameters, "owned_bytes": owned, "state": state, "loss_after": loss}


def say(topology: Topology, what: str, measured: dict[str, dict[str, list[float]]]) -> None:
    if topology.rank == 0:
        stalls = "  ".join(f"{name} {values['stall_seconds'][-1]:.3f}" for name, values in measured.items())
        print(f"{what}: stall in seconds  {stalls}", flush=True)


def clear(route: Route, topology: Topology) -> None:
    """Remove what a route has written, and let nothing of it wait for the disk when the next one begins."""
    topology.barrier()
    if topology.rank == 0:
        shutil.rmtree(route.folder, ignore_errors=True)
        os.sync()
    topology.barrier()


def built_engine(settings: Settings, topology: Topology, *, fill: bool) -> Engine:
    """The model, wrapped; its weights mean something if `fill` asks for the initial ones."""
    from bigtrain.engine.engine import Engine
    from bigtrain.train.build import new_model

    return Engine(new_model(settings, topology, fill=fill), settings, topology)


def train_step(engine: Engine, settings: Settings, topology: Topology) -> float:
    """One optimizer step over a global batch of random tokens, the same ones each time; the mean loss before it."""
    import torch

    rows, length = settings.train.micro_batch_size, settings.data.sequence_length
    micro_batches = settings.train.global_batch_size // (rows * topology.world_size)
    tokens = settings.train.global_batch_size * length
    loss = 0.0
    for number in range(micro_batches):
        generator = torch.Generator().manual_seed(topology.rank * micro_batches + number)
        ids = torch.randint(settings.model.vocab_size, (rows, length + 1), generator=generator)
        inputs = {
            "input_ids": ids[:, :-1].contiguous(),
            "labels": ids[:, 1:].contiguous(),
            "position_ids": torch.arange(length).expand(rows, length).contiguous(),
            "cu_seqlens": torch.arange(0, (rows + 1) * length, length, dtype=torch.int32),
            "max_seqlen": length,
        }
        loss += engine.forward_backward(inputs, scale=1 / tokens).item()
    engine.step(1e-3)
    return topology.sum_across_ranks([loss])[0] / tokens


def timed(function: Callable[..., Any], *arguments: Any) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def since_start() -> float:
    return time.time() - float(os.environ[STARTED])


def owned_bytes(engine: Engine) -> int:
    """Of master weights and moments on this rank."""
    return sum(fragment.data.nbytes for fragment in engine.fragments())


def state_digest(engine: Engine, topology: Topology) -> str:
    """Of the bits of all master weights and moments, however they are cut: exact sums, so their order is no matter."""
    import torch
    import xxhash

    from bigtrain.base import gather

    sums: dict[str, int] = {}
    for fragment in engine.fragments():
        key = f"{fragment.kind}/{fragment.name}"
        bits = fragment.data.detach().view(torch.int32).to(torch.int64)
        places = torch.arange(fragment.offset, fragment.offset + bits.numel()) * 2 + 1
        sums[key] = sums.get(key, 0) + int((bits * places).sum())
    total: dict[str, int] = {}
    for of_rank in topology.broadcast(gather(topology, sums)):
        for key, value in of_rank.items():
            total[key] = (total.get(key, 0) + value) % 2**64
    return xxhash.xxh3_64_hexdigest(json.dumps(sorted(total.items())).encode())


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Bytes by which the resident memory of this process rises at its peak, from the kernel's own high-water mark.

    It counts every resident page, so it is no less than what anonymous memory rises by; `files` says by how much mapped
    files have risen, to show that it is not much more.
    """
    measured: dict[str, float] = {}
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_status()
    yield measured
    after = memory_status()
    measured["extra"] = after["VmHWM"] - before["VmRSS"]
    measured["files"] = after["RssFile"] - before["RssFile"]


def memory_status() -> dict[str, int]:
    """The sizes in /proc/self/status in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {fields[0][:-1]: int(fields[1]) * 1024 for fields in lines if fields[-1] == "kB"}


if __name__ == "__main__":
    main()

"""Training speed on one GPU: llama-style models of 160M and 1B parameters at 4,096 tokens, in under 8 minutes.

    python benchmarks/train_gpu.py [--minutes 7.5] [--cases 160M,1B]
    python benchmarks/train_gpu.py --tiny [--compile]     # a rehearsal of the same code on a CPU

bf16, ZeRO stage 1, fused AdamW, gradient clipping. Every measurement is a process of its own under torchrun, so neither
memory nor compiled code nor a broken CUDA context is handed on from one to the next; a case that runs out of memory is
tried again with half the micro-batch. Timed is the whole optimizer step, batches to the device included, loading not.

All contestants get the same tokens (Zipf's law, no special values) and the same global batch. bigtrain gets them as
packed documents of log-normal length and attends inside each. The plain loop knows no documents; "160M whole rows" is
bigtrain doing the very work of the plain loop, one document a row, and the ratio to look at.

MFU is given three ways: by the field's convention (PaLM, appendix B: every token attends to the whole row) against the
datasheet's dense bf16 peak, by the same count against the matrix product measured in this run, and with attention
counted as the documents need it, against that measured product too. A device without a trusted datasheet gets the
measured ones only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import psutil
from record import spread, write_result

if TYPE_CHECKING:
    import torch

    from bigtrain.config import ModelSettings, Settings
    from bigtrain.data import MicroBatch
    from bigtrain.engine.topology import Topology

DATASHEET_BF16_FLOPS = {"NVIDIA H100 80GB HBM3": 989.5e12, "NVIDIA H200": 989.5e12}
"""Dense bf16 peaks of SXM parts, by the exact name CUDA gives: PCIe and NVL parts have other names and lower peaks."""

WARMUP_STEPS = 4  # compilation, and again once the lengths of documents have varied
SHORTEST_CASE_SECONDS, LONGEST_CASE_SECONDS = 40, 150
MACHINE = "machine"


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    model: Literal["160M", "1B"]
    contestant: Literal["bigtrain", "plain"] = "bigtrain"
    compile: bool = True
    attn_implementation: Literal["auto", "sdpa"] = "auto"
    activation_checkpointing: Literal["none", "selective"] = "none"
    whole_rows: bool = False


# The most telling first: what the minutes do not suffice for is left out at the end.
CASES = {
    "160M": Case("160M"),
    "160M plain": Case("160M", contestant="plain", whole_rows=True),
    "160M whole rows": Case("160M", whole_rows=True),
    "1B": Case("1B"),
    "1B selective": Case("1B", activation_checkpointing="selective"),
    "160M not compiled": Case("160M", compile=False),
    "160M sdpa": Case("160M", attn_implementation="sdpa"),
}


@dataclass(frozen=True)
class Work:
    """What one optimizer step has to do, and how many are timed."""

    rows: int
    length: int
    steps: int


WORK = {"160M": Work(rows=32, length=4096, steps=20), "1B": Work(rows=16, length=4096, steps=12)}
TINY_WORK = Work(rows=4, length=128, steps=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.5, help="for everything; later cases are left out")
    parser.add_argument("--cases", type=lambda names: names.split(","), default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--tiny", action="store_true", help="rehearse with a tiny model, not compiled")
    parser.add_argument("--compile", action="store_true", help="with --tiny: compile where the full benchmark does")
    parser.add_argument("--out", type=Path, default=Path(os.environ["OUT"]) if os.environ.get("OUT") else None)
    parser.add_argument("--worker", choices=[MACHINE, *CASES], help=argparse.SUPPRESS)
    parser.add_argument("--micro-batch-size", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--outcome", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        args.outcome.write_text(json.dumps(outcome_of(args)))
    elif unknown := set(args.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Measure case after case, and keep the result after each."""
    deadline = time.monotonic() + 60 * args.minutes
    name = "train_gpu_tiny" if args.tiny else "train_gpu"
    machine = run_worker(args, MACHINE, 1, deadline)
    if "failure" in machine:
        sys.exit(f"the machine could not be measured: {machine['failure']}")
    print(describe(machine), flush=True)
    cases: dict[str, dict[str, Any]] = {}
    for case in args.cases:
        started = time.monotonic()
        cases[case] = rated(largest_that_fits(args, case, deadline), machine)
        print(f"{case:18} {summary(cases[case])}  ({time.monotonic() - started:.0f} s in all)", flush=True)
        path = write_result(name, {"device": machine, "cases": cases}, args.out)
    print(f"\n{table(cases, machine)}\n\n{path}")


def largest_that_fits(args: argparse.Namespace, name: str, deadline: float) -> dict[str, Any]:
    """The case with the largest micro-batch that fits; at most half the global batch, so that gradients accumulate."""
    size = work_of(args, CASES[name].model).rows // 2
    too_large: list[int] = []
    while True:
        outcome = run_worker(args, name, size, deadline)
        outcome = {**vars(CASES[name]), "micro_batch_size": size, "out_of_memory_at": too_large, **outcome}
        if outcome.get("failure") != "out of memory" or size == 1:
            return outcome
        too_large.append(size)
        size //= 2


def run_worker(args: argparse.Namespace, name: str, micro_batch_size: int, deadline: float) -> dict[str, Any]:
    """One measurement in a process of its own under torchrun: what it found, or its "failure"."""
    seconds = min(deadline - time.monotonic(), LONGEST_CASE_SECONDS)
    if seconds < SHORTEST_CASE_SECONDS:
        return {"failure": "no time left"}
    with tempfile.TemporaryDirectory() as folder:
        outcome, log = Path(folder) / "outcome.json", Path(folder) / "log"
        command = [
            *(sys.executable, "-m", "bigtrain.cli.torchrun", "--standalone", "--nproc-per-node=1", __file__),
            *("--worker", name, "--micro-batch-size", str(micro_batch_size), "--outcome", str(outcome)),
            *(["--tiny"] if args.tiny else []),
            *(["--compile"] if args.compile else []),
        ]
        with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
            try:
                status = f"ended with status {process.wait(seconds)}"
            except subprocess.TimeoutExpired:
                status = f"not done after {seconds:.0f} s"
                for worker in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):  # it went with one before it
                        worker.kill()
                process.kill()
        found: dict[str, Any] = json.loads(outcome.read_text()) if outcome.exists() else {"failure": status}
        if found.get("failure", "out of memory") != "out of memory":
            print("\n".join(log.read_text().splitlines()[-40:]), flush=True)
    return found


def rated(outcome: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """A measurement with its rates; a failure as it is."""
    if "failure" in outcome:
        return outcome
    rates = spread([outcome["tokens_per_step"] / seconds for seconds in outcome["step_seconds"]])
    flops = rates["median"] * outcome["flops_per_token"]
    exact_flops = rates["median"] * outcome["exact_flops_per_token"]
    datasheet, measured = machine["datasheet_bf16_flops"], machine["matmul_bf16_flops"]
    return {
        **outcome,
        "tokens_per_second": rates,
        "mfu": flops / datasheet if datasheet else None,
        "mfu_of_measured_matmul": flops / measured,
        "exact_mfu_of_measured_matmul": exact_flops / measured,
    }


def describe(machine: dict[str, Any]) -> str:
    datasheet = machine["datasheet_bf16_flops"]
    return (
        f"{machine['device']}, {machine['memory_gib']:.0f} GiB, torch {machine['torch']}, CUDA {machine['cuda']}\n"
        f"measured: bf16 matrix product {machine['matmul_bf16_flops'] / 1e12:.4g} TFLOP/s"
        f" ({f'datasheet {datasheet / 1e12:.4g}' if datasheet else 'no trusted datasheet'}),"
        f" copy {machine['copy_bytes_per_second'] / 1e12:.3g} TB/s\n"
    )


def summary(case: dict[str, Any]) -> str:
    if "failure" in case:
        return f"{case['failure'][:80]} (micro-batch {case['micro_batch_size']})"
    rates = case["tokens_per_second"]
    return f"{rates['median']:,.0f} tokens/s ({rates['min']:,.0f} to {rates['max']:,.0f})"


def table(cases: dict[str, dict[str, Any]], machine: dict[str, Any]) -> str:
    heads = ("case", "tokens/s", "MFU", "of matmul", "exact", "peak GiB", "attention", "micro-batch", "vs plain")
    rows: list[tuple[str, ...]] = [heads]
    plain = cases.get("160M plain", {}).get("tokens_per_second", {}).get("median")
    for name, case in cases.items():
        if "failure" in case:
            rows.append((name, summary(case)))
            continue
        rate = case["tokens_per_second"]["median"]
        rows.append(
            (
                name,
                f"{rate:,.0f}",
                "-" if case["mfu"] is None else f"{case['mfu']:.1%}",
                f"{case['mfu_of_measured_matmul']:.1%}",
                f"{case['exact_mfu_of_measured_matmul']:.1%}",
                f"{case['peak_memory_gib']:.1f}",
                case["attention"],
                str(case["micro_batch_size"]),
                f"{rate / plain:.2f}" if plain and case["model"] == "160M" else "-",
            )
        )
    widths = [max(len(row[column]) for row in rows if len(row) == len(heads)) for column in range(len(heads))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows]
    return "\n".join([describe(machine), *(line.rstrip() for line in lines)])


# ---- in the worker, under torchrun ----


def outcome_of(args: argparse.Namespace) -> dict[str, Any]:
    """What this process measures; anything that goes wrong is an outcome too."""
    from bigtrain.engine.topology import start

    try:
        topology = start(timeout_minutes=5)
        found = measure_machine(topology) if args.worker == MACHINE else measure_case(args, topology)
        topology.shutdown()
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {"failure": "out of memory" if is_out_of_memory(error) else message}
    return found


def is_out_of_memory(error: Exception) -> bool:
    """Allocations fail in PyTorch's allocator, in CUDA itself, in cuBLAS, or on a CPU in malloc."""
    signs = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, MemoryError | RuntimeError) and any(sign in str(error) for sign in signs)


def measure_machine(topology: Topology) -> dict[str, Any]:
    """What the device can do at best: a matrix product and a copy, both on random data."""
    import torch

    from bigtrain.run.meter import measure_matmul_peak

    device = topology.device
    on_gpu = device.type == "cuda"
    source = torch.randint(256, (1 << (32 if on_gpu else 26),), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    fastest = math.inf
    for _ in range(10):
        synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        fastest = min(fastest, time.perf_counter() - started)
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else psutil.virtual_memory().total
    return {
        "device": name,
        "memory_gib": memory / 2**30,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "datasheet_bf16_flops": DATASHEET_BF16_FLOPS.get(name),
        "matmul_bf16_flops": measure_matmul_peak(device, torch.bfloat16, seconds=2.0),
        "copy_bytes_per_second": 2 * source.numel() / fastest,  # read and written
    }


def measure_case(args: argparse.Namespace, topology: Topology) -> dict[str, Any]:
    import torch

    from bigtrain.model import count_parameters, flops_per_token

    case: Case = CASES[args.worker]
    model = tiny_model() if args.tiny else model_settings(case.model)
    work = work_of(args, case.model)
    compiled = case.compile and (args.compile or not args.tiny)
    data = Data(work, model.vocab_size, case.whole_rows)
    started = time.perf_counter()
    if case.contestant == "plain":
        attention, seconds, losses = "sdpa", train_plain(model, data, args.micro_batch_size, compiled, topology), None
    else:
        settings = settings_for(case, model, work, args.micro_batch_size, compiled)
        attention = attention_taken(settings, topology.device)
        seconds, losses = train_bigtrain(settings, data, topology)
    on_gpu = topology.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else psutil.Process().memory_info().rss
    dense = flops_per_token(model, 0)
    per_token_seen = flops_per_token(model, 1) - dense
    return {
        "model_settings": model.model_dump(),
        "parameters": count_parameters(model),
        "work": vars(work),
        "compiled": compiled,
        "compiled_graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "attention": attention,
        "tokens_per_step": work.rows * work.length,
        "step_seconds": seconds[WARMUP_STEPS:],
        "warmup_seconds": seconds[:WARMUP_STEPS],
        "total_seconds": time.perf_counter() - started,
        "losses": losses,
        "peak_memory_gib": peak / 2**30,
        "reserved_memory_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None,
        "flops_per_token": flops_per_token(model, work.length),
        "exact_flops_per_token": dense + per_token_seen * data.tokens_seen_on_average(),
    }


def train_bigtrain(settings: Settings, data: Data, topology: Topology) -> tuple[list[float], list[float]]:
    """Seconds and mean loss of each step, computed as `TrainingRun.optimize` does."""
    import torch

    from bigtrain.engine.engine import Engine
    from bigtrain.run.setup import new_model

    engine = Engine(new_model(settings, topology, fill=True), settings, topology)
    seconds, losses = [], []
    for batch in data.packed(settings.train.micro_batch_size):
        synchronize(topology.device)
        started = time.perf_counter()
        label_tokens = sum(micro_batch.label_tokens for micro_batch in batch)
        loss_sum = torch.zeros((), dtype=torch.float64, device=topology.device)
        for micro_batch in batch:
            inputs = micro_batch.to(topology.device).model_inputs()
            loss_sum += engine.forward_backward(inputs, scale=1 / label_tokens)
        update = engine.step(settings.optimizer.learning_rate)
        loss = loss_sum.item() / label_tokens
        synchronize(topology.device)
        seconds.append(time.perf_counter() - started)
        losses.append(loss)
        if not (update.applied and math.isfinite(loss)):
            raise FloatingPointError(f"loss {loss}, gradient norm {update.grad_norm}")
    return seconds, losses


def train_plain(
    model: ModelSettings, data: Data, micro_batch_size: int, compiled: bool, topology: Topology
) -> list[float]:
    """Seconds of each step of the plain PyTorch loop: float32 weights under bf16 autocast."""
    import plain_llama
    import torch

    torch.manual_seed(0)
    plain = plain_llama.PlainLlama(
        model.vocab_size,
        model.hidden_size,
        model.num_hidden_layers,
        model.num_attention_heads,
        model.key_value_heads,
        model.intermediate_size,
    )
    if not model.tie_word_embeddings:
        plain.head.weight = torch.nn.Parameter(plain.embed.weight.detach().clone())
    plain.to(topology.device)
    if compiled:
        plain.compile()
    tokens = torch.from_numpy(data.window.astype(np.int64))
    return plain_llama.train(plain, tokens, micro_batch_size, device=topology.device.type)


def attention_taken(settings: Settings, device: torch.device) -> str:
    """The back-end that the model's own rule picks for its queries."""
    import torch

    from bigtrain.model.attention_backends import attention_backend
    from bigtrain.model.attention_rule import AttentionRule

    shape = (1, settings.model.num_attention_heads, settings.model.head_width)
    query = torch.empty(shape, dtype=torch.bfloat16, device=device)
    return attention_backend(settings.engine.attn_implementation, query, AttentionRule(scale=1.0)).__name__


def synchronize(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- the work ----


class Data:
    """The same tokens and documents for everyone, whatever the micro-batch."""

    def __init__(self, work: Work, vocab_size: int, whole_rows: bool) -> None:
        """Draw the rows of all steps.

        Args:
            work: how many.
            vocab_size: V; ids are 1 to V - 1 with a density like 1 / id (Zipf's law), as text has them.
            whole_rows: each row is one document; else documents have log-normal lengths, a sixth of a row in the
                median, and are cut where a row ends.
        """
        steps = WARMUP_STEPS + work.steps
        uniform = np.random.default_rng(0).random((steps, work.rows, work.length + 1))
        self.window = np.power(vocab_size, uniform).astype(np.uint32)
        self.length = work.length
        lengths = np.random.default_rng(1).lognormal(math.log(work.length / 6), 1.0, (steps, work.rows, work.length))
        ends = np.cumsum(np.maximum(2, lengths).astype(np.int64), axis=-1)
        self._ends = [
            [np.empty(0, np.int64) if whole_rows else row[row < work.length] for row in step] for step in ends
        ]

    def packed(self, micro_batch_size: int) -> Iterator[list[MicroBatch]]:
        """The micro-batches of each step."""
        for window, ends in zip(self.window, self._ends, strict=True):
            yield [
                pack(window[first : first + micro_batch_size], ends[first : first + micro_batch_size])
                for first in range(0, len(window), micro_batch_size)
            ]

    def tokens_seen_on_average(self) -> float:
        """Tokens that a token attends to: (n + 1) / 2 in a document of n."""
        rows = [np.diff(np.concatenate(([0], row, [self.length]))) for step in self._ends for row in step]
        lengths = np.concatenate(rows)
        return float((lengths * (lengths + 1) / 2).sum() / lengths.sum())


def pack(window: npt.NDArray[np.uint32], ends: list[npt.NDArray[np.int64]]) -> MicroBatch:
    """Rows [B, T + 1], with the places in each where a document ends, as the loader hands them out."""
    from bigtrain.data.assemble import IGNORED, Rows
    from bigtrain.data.batch import micro_batches_of

    batch, length = window.shape[0], window.shape[1] - 1
    end = np.concatenate([row + index * length for index, row in enumerate(ends)])
    boundaries = np.union1d(end, np.arange(0, (batch + 1) * length, length))
    labels = window[:, 1:].astype(np.int32)
    labels.reshape(-1)[end - 1] = IGNORED
    positions = np.arange(batch * length) - np.repeat(boundaries[:-1], np.diff(boundaries))
    rows = Rows(
        input_ids=window[:, :-1].astype(np.int32),
        labels=labels,
        positions=positions.reshape(batch, length).astype(np.int32),
        boundaries=boundaries,
        label_tokens=np.array([length - len(row) for row in ends]),
        input_tokens=np.full(batch, length),
    )
    (micro_batch,) = micro_batches_of(rows, batch)
    return micro_batch


def work_of(args: argparse.Namespace, model: str) -> Work:
    return TINY_WORK if args.tiny else WORK[model]


def model_settings(name: str) -> ModelSettings:
    """160M: the shape of JackFram/llama-160m, 162,417,408 parameters. 1B: that of configs/llama-1b.yaml."""
    from bigtrain.config import load_settings
    from bigtrain.config.model_settings import ModelSettings

    if name == "1B":
        return load_settings(Path(__file__).parents[1] / "configs" / "llama-1b.yaml").model
    return ModelSettings(
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        vocab_size=32000,
        max_position_embeddings=4096,
    )


def tiny_model() -> ModelSettings:
    from bigtrain.config.model_settings import ModelSettings

    return ModelSettings(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        vocab_size=512,
        max_position_embeddings=128,
    )


def settings_for(case: Case, model: ModelSettings, work: Work, micro_batch_size: int, compiled: bool) -> Settings:
    """The settings of a run that does this work. Its folders are never touched."""
    from bigtrain.config.data_settings import DataSettings, SourceSettings, TokenizerSettings
    from bigtrain.config.engine_settings import EngineSettings
    from bigtrain.config.settings import Settings, TrainSettings

    return Settings(
        run_dir=Path("unused"),
        model=model,
        data=DataSettings(
            dir=Path("unused"),
            tokenizer=TokenizerSettings(vocab_size=model.vocab_size),
            sources=[SourceSettings(name="random", kind="python_stdlib")],
            sequence_length=work.length,
        ),
        train=TrainSettings(
            steps=WARMUP_STEPS + work.steps, global_batch_size=work.rows, micro_batch_size=micro_batch_size
        ),
        engine=EngineSettings(
            zero_stage=1,
            precision="bf16",
            compile=compiled,
            attn_implementation=case.attn_implementation,
            activation_checkpointing=case.activation_checkpointing,
        ),
    )


if __name__ == "__main__":
    main()

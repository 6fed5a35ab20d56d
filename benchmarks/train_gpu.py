"""Training speed on one GPU: llama-style models of 160M, 1B and 3B parameters at 4,096 tokens, 1B at 32,768, in bf16
and in 8 bits, beside a plain compiled PyTorch loop and the transformers Trainer; in under 8 minutes.

    python benchmarks/train_gpu.py [--minutes 7.5] [--cases loss,160M,1B]
    python benchmarks/train_gpu.py --tiny [--compile]     # a rehearsal of the same code on a CPU

ZeRO stage 1, fused AdamW, gradient clipping. Every measurement is a process of its own under torchrun, so neither
memory nor compiled code nor a broken CUDA context is handed on from one to the next; a case that runs out of memory is
tried again with half the micro-batch. Timed is the whole optimizer step, batches to the device included, loading not.
One more step of bigtrain is profiled afterwards, and the kernels that cost most are kept. `loss` is the loss alone: the
Triton kernel, PyTorch chunk by chunk, and PyTorch over all logits, in time and memory.

All contestants get the same tokens (Zipf's law, no special values) and the same global batch. bigtrain gets them as
packed documents of log-normal length and attends inside each. Peers know no documents; "whole rows" is bigtrain doing
their very work, one document a row, and the ratio to look at.

MFU is given three ways: by the field's convention (PaLM, appendix B: every token attends to the whole row) against the
datasheet's dense bf16 peak, by the same count against the matrix product measured in this run, and with attention
counted as the documents need it, against that measured product too. A device without a trusted datasheet gets the
measured ones only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from record import spread, write_result
from train_gpu_cases import CASES, work_of
from train_gpu_loss import LOSS, loss_table
from train_gpu_worker import MACHINE, outcome_of

NAMES = (LOSS, *CASES)
SHORTEST_CASE_SECONDS, LONGEST_CASE_SECONDS = 40, 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.5, help="for everything; later cases are left out")
    parser.add_argument("--cases", type=lambda names: names.split(","), default=list(NAMES), help=", ".join(NAMES))
    parser.add_argument("--tiny", action="store_true", help="rehearse with a tiny model, not compiled")
    parser.add_argument("--compile", action="store_true", help="with --tiny: compile where the full benchmark does")
    parser.add_argument("--out", type=Path, default=Path(os.environ["OUT"]) if os.environ.get("OUT") else None)
    parser.add_argument("--worker", choices=[MACHINE, *NAMES], help=argparse.SUPPRESS)
    parser.add_argument("--micro-batch-size", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--outcome", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        args.outcome.write_text(json.dumps(outcome_of(args)))
    elif unknown := set(args.cases) - set(NAMES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
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
    loss = run_worker(args, LOSS, 1, deadline) if LOSS in args.cases else {}
    path = write_result(name, {"device": machine, "loss": loss, "cases": {}}, args.out)
    print(loss_table(loss), flush=True)
    cases: dict[str, dict[str, Any]] = {}
    for case in (case for case in args.cases if case != LOSS):
        started = time.monotonic()
        cases[case] = rated(largest_that_fits(args, case, deadline), machine)
        print(f"{case:18} {summary(cases[case])}  ({time.monotonic() - started:.0f} s in all)", flush=True)
        path = write_result(name, {"device": machine, "loss": loss, "cases": cases}, args.out)
    print(f"\n{table(cases, machine)}\n\n{path}")


def largest_that_fits(args: argparse.Namespace, name: str, deadline: float) -> dict[str, Any]:
    """The case with the largest micro-batch that fits; at most half the global batch, so that gradients accumulate."""
    size = work_of(CASES[name].model, args.tiny).rows // 2
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
    heads = (
        "case",
        "tokens/s",
        "MFU",
        "of matmul",
        "exact",
        "peak GiB",
        "attention",
        "micro-batch",
        "vs plain",
        "vs trainer",
    )
    rows: list[tuple[str, ...]] = [heads]
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
                *(ahead_of(peer, case, cases) for peer in ("plain", "trainer")),
            )
        )
    widths = [max(len(row[column]) for row in rows if len(row) == len(heads)) for column in range(len(heads))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows]
    return "\n".join([describe(machine), *(line.rstrip() for line in lines), *costs(cases)])


def ahead_of(peer: str, case: dict[str, Any], cases: dict[str, dict[str, Any]]) -> str:
    """How many times as many tokens a second as a peer with the same model."""
    other = cases.get(f"{case['model']} {peer}", {}).get("tokens_per_second")
    return f"{case['tokens_per_second']['median'] / other['median']:.2f}" if other else "-"


def costs(cases: dict[str, dict[str, Any]]) -> list[str]:
    """The five costliest kernels of each profiled step, a line a case."""
    return [
        f"\n{name}: " + "; ".join(f"{kernel['share']:.0%} {kernel['kernel'][:48]}" for kernel in case["costliest"][:5])
        for name, case in cases.items()
        if case.get("costliest")
    ]


if __name__ == "__main__":
    main()

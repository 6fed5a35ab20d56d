"""Training speed on a CPU, side by side: bigtrain, plain PyTorch loops, and the transformers Trainer.

    python benchmarks/train_cpu.py [--config configs/quickstart.yaml] [--steps 24] [--repeats 5]

Same architecture, same batches, same number of cores, bf16 compute with float32 master weights, fused AdamW, gradient
clipping. Every contestant runs in processes of its own, and the contestants take turns, so that a drift of the
machine's speed hits all alike. Timed is the whole optimizer step, data loading included, without the first few.
bigtrain is the ordinary command (`bigtrain train` under torchrun), its step times are those of metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from record import spread, write_result

from bigtrain.config import Settings, load_settings

WARMUP_STEPS = 4
CORES = len(os.sched_getaffinity(0))
CONTESTANTS = {
    "bigtrain": f"bigtrain train, {CORES} processes of 1 thread, as launch/local.sh starts it",
    "bigtrain-1": f"bigtrain train, 1 process of {CORES} threads",
    "plain": f"plain PyTorch loop, plain Llama, {CORES} threads",
    "plain-hf": f"plain PyTorch loop, transformers' Llama, {CORES} threads",
    "trainer": f"transformers Trainer, transformers' Llama, {CORES} threads",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    settings = load_settings(args.config)
    if args.contestant:
        print(json.dumps(run_peer(args.contestant, settings, torch.load(args.batches, weights_only=True))))
    else:
        compare(args, settings)


def compare(args: argparse.Namespace, settings: Settings) -> None:
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder:
        batches = Path(folder) / "batches.pt"
        torch.save(first_batches(settings, args.steps), batches)
        for repeat in range(args.repeats):
            for name in CONTESTANTS:
                if name.startswith("bigtrain"):
                    processes = 1 if name.endswith("-1") else CORES
                    seconds = run_bigtrain(args.config, args.steps, processes, Path(folder) / f"{name}-{repeat}")
                else:
                    seconds = run_in_a_process_of_its_own(name, args.config, batches)
                tokens = settings.train.global_batch_size * settings.data.sequence_length
                rates[name].append(tokens / statistics.median(seconds[WARMUP_STEPS:]))
                print(f"repeat {repeat + 1}/{args.repeats}  {name:12} {rates[name][-1]:10,.0f} tokens/s", flush=True)
    report(args, settings, rates)


def report(args: argparse.Namespace, settings: Settings, rates: dict[str, list[float]]) -> None:
    from bigtrain.model import flops_per_token
    from bigtrain.run.peaks import measure_matmul_peak

    torch.set_num_threads(CORES)
    peak = measure_matmul_peak(torch.device("cpu"), torch.bfloat16, seconds=2.0)
    flops = flops_per_token(settings.model, settings.data.sequence_length)
    rows: dict[str, Any] = {}
    print(f"\n{'contestant':12} {'tokens/s':>10} {'MFU':>7}  bigtrain is faster by (median, range over repeats)")
    for name, values in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(rates["bigtrain"], values, strict=True)]
        rows[name] = {
            "what": CONTESTANTS[name],
            "tokens_per_second": spread(values),
            "mfu": statistics.median(values) * flops / peak,
            "bigtrain_is_faster_by": spread(ratios),
        }
        print(
            f"{name:12} {statistics.median(values):10,.0f} {rows[name]['mfu']:7.1%}  "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    result = {"config": str(args.config), "steps": args.steps, "matmul_peak_flops": peak, "contestants": rows}
    print(f"\n{write_result('train_cpu', result, args.out)}")


def run_bigtrain(config: Path, steps: int, processes: int, run_dir: Path) -> list[float]:
    """Step seconds of the ordinary command, from its metrics."""
    overrides = [
        f"run_dir={run_dir}", f"train.steps={steps}", "schedule.warmup_steps=2", "schedule.decay_steps=2",
        "evaluate.every_steps=null", "evaluate.max_sequences=1", "checkpoint.every_steps=null",
        "tracking.wandb=disabled",
    ]  # fmt: skip
    subprocess.run(
        ["launch/local.sh", str(config), *overrides],
        env={**os.environ, "NPROC": str(processes), "PYTHON": sys.executable},
        check=True,
        capture_output=True,
    )
    return [json.loads(line)["step_seconds"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def run_in_a_process_of_its_own(name: str, config: Path, batches: Path) -> list[float]:
    command = [sys.executable, __file__, "--config", str(config), "--contestant", name, "--batches", str(batches)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds: list[float] = json.loads(finished.stdout.splitlines()[-1])
    return seconds


def first_batches(settings: Settings, steps: int) -> torch.Tensor:
    """The token ids that bigtrain trains on in its first steps: [steps, batch, length + 1]."""
    from bigtrain.data import Loader
    from bigtrain.run.data import RunData

    data = RunData.open(settings)
    rows = []
    with Loader(data.plan, data.train, micro_batch_size=settings.train.global_batch_size) as loader:
        for _ in range(steps):
            (batch,) = (micro_batch.to("cpu") for micro_batch in next(loader).micro_batches)
            # A label that is masked between documents is an end of text here: peers know no documents.
            last = batch.labels[:, -1:].clamp(min=0)
            rows.append(torch.cat((batch.input_ids, last), dim=1))
    return torch.stack(rows)


def run_peer(name: str, settings: Settings, batches: torch.Tensor) -> list[float]:
    """Step seconds of one peer, in this process."""
    import plain_llama

    torch.set_num_threads(CORES)
    torch.manual_seed(0)
    m = settings.model
    if name == "plain":
        model: torch.nn.Module = plain_llama.PlainLlama(
            m.vocab_size,
            m.hidden_size,
            m.num_hidden_layers,
            m.num_attention_heads,
            m.key_value_heads,
            m.intermediate_size,
        )
        return plain_llama.train(model, batches, settings.train.micro_batch_size)
    if name == "plain-hf":
        return plain_llama.train(hf_llama(settings), batches, settings.train.micro_batch_size, returns_output=True)
    return run_trainer(settings, batches)


def hf_llama(settings: Settings) -> torch.nn.Module:
    """The same architecture as transformers builds it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    shape = {name: getattr(settings.model, name) for name in names}
    model: torch.nn.Module = LlamaForCausalLM(
        LlamaConfig(
            **shape,
            num_key_value_heads=settings.model.key_value_heads,
            max_position_embeddings=settings.model.max_position_embeddings,
            tie_word_embeddings=settings.model.tie_word_embeddings,
            use_cache=False,
        )
    )
    return model


def run_trainer(settings: Settings, batches: torch.Tensor) -> list[float]:
    """Step seconds of the transformers Trainer with the settings a user would take on a CPU."""
    import time

    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    rows = batches.flatten(0, 1)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(batches),
            per_device_train_batch_size=settings.train.micro_batch_size,
            gradient_accumulation_steps=settings.train.global_batch_size // settings.train.micro_batch_size,
            bf16=True,
            use_cpu=True,
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            save_strategy="no",
            report_to=[],
            logging_strategy="no",
            disable_tqdm=True,
        )
        dataset = [{"input_ids": row[:-1], "labels": row[:-1]} for row in rows]
        Trainer(model=hf_llama(settings), args=arguments, train_dataset=dataset, callbacks=[clock]).train()
    clock.times.append(time.perf_counter())
    return [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]


if __name__ == "__main__":
    main()

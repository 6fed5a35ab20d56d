"""LoRA on a CPU, side by side with peft and the transformers Trainer: tokens a second, and peak memory.

    bigtrain data build benchmarks/llama-30m.yaml
    PYTHONPATH=. python benchmarks/adapters.py [--config benchmarks/llama-30m.yaml] [--repeats 3] [--timed-tokens 20000]

It takes less than eight minutes on two cores that have nothing else to do. Same base (random weights), same batches of
one micro-batch, same adapter (r 16 on every linear layer of the blocks), AdamW, clipping, one process with all cores.
The precision is bfloat16 where the CPU has instructions for it. Each contestant runs in a process of its own; of the
Trainer's two ways to bfloat16 the faster one of a first round goes on. They then take turns, so that a drift of the
machine's speed hits all alike. bigtrain is the
ordinary command, its step times those of metrics.jsonl, and it trains documents apart from each other, which peers do
not. Its full training of the same model stands beside it, to say what an adapter saves. Timed is the whole step, data
loading included, without the first few. Memory is the largest resident set of the process, which the kernel counts.
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
from typing import Any, NamedTuple

import torch
import yaml
from record import spread, write_result
from train_cpu import CORES, WARMUP_STEPS, first_batches

from bigtrain.config import load_settings
from bigtrain.convert import export_hf, import_hf
from bigtrain.model import build_model, count_learning_parameters, count_parameters, product_dtype

RANK, ALPHA = 16, 32.0
WHAT = {
    "bigtrain": "bigtrain train with adapter.method lora",
    "bigtrain-full": "bigtrain train, all parameters",
    "peft": "transformers Trainer, LoRA of peft",
}


def forms() -> dict[str, list[str]]:
    """Precisions: of the Trainer float32 weights under autocast, or weights in bfloat16; or all in float32."""
    if product_dtype(torch.bfloat16, torch.device("cpu")) != torch.bfloat16:
        return {name: ["fp32"] for name in WHAT}
    return {"bigtrain": ["bf16"], "bigtrain-full": ["bf16"], "peft": ["bf16-autocast", "bf16-weights"]}


class Measured(NamedTuple):
    """One run."""

    tokens_per_second: float
    peak_bytes: int


class Race:
    """All contestants on one base and its batches."""

    def __init__(self, config: Path, folder: Path, timed_tokens: int) -> None:
        self.document = yaml.safe_load(config.read_text())
        self.document["train"]["global_batch_size"] = self.document["train"]["micro_batch_size"]
        self.folder, self.settings = folder, load_settings(config, [f"train.global_batch_size={self.rows}"])
        self.tokens_per_step = self.settings.train.global_batch_size * self.settings.data.sequence_length
        self.steps = WARMUP_STEPS + max(4, timed_tokens // self.tokens_per_step)
        self.runs = 0
        torch.save(first_batches(self.settings, self.steps), folder / "batches.pt")
        model = build_model(self.settings.model)
        model.init_weights(0)
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        end = self.settings.data.tokenizer.end_of_text
        tokenizer = self.settings.data.dir / "tokenizer.json"
        export_hf(weights, self.settings.model, tokenizer, folder / "hf", end_of_text=end, dtype=torch.float32)
        import_hf(folder / "hf", folder / "weights", end_of_text=end)

    @property
    def rows(self) -> int:
        """Samples of a step: one micro-batch."""
        return int(self.document["train"]["micro_batch_size"])

    def result(self, repeats: int) -> dict[str, Any]:
        trials: dict[str, dict[str, float]] = {}
        fastest = {}
        for name, tried in forms().items():
            if len(tried) > 1:
                trials[name] = {form: self.run(name, form).tokens_per_second for form in tried}
                print(f"tried {name:14} {trials[name]}", flush=True)
            fastest[name] = max(tried, key=lambda form: trials.get(name, {}).get(form, 0.0))
        found: dict[str, list[Measured]] = {name: [] for name in WHAT}
        for repeat in range(repeats):
            for name, form in fastest.items():
                found[name].append(self.run(name, form))
                print(f"{repeat + 1}/{repeats}  {name:14} {form:14} {found[name][-1]}", flush=True)
        rows = {}
        for name, measured in found.items():
            pairs = list(zip(found["bigtrain"], measured, strict=True))
            rows[name] = {
                "what": WHAT[name],
                "form": fastest[name],
                "tokens_per_second": spread([each.tokens_per_second for each in measured]),
                "peak_bytes": spread([each.peak_bytes for each in measured]),
                "bigtrain_is_faster_by": spread([a.tokens_per_second / b.tokens_per_second for a, b in pairs]),
                "memory_over_that_of_bigtrain": spread([b.peak_bytes / a.peak_bytes for a, b in pairs]),
            }
        adapter = load_settings(self.config_of("bigtrain", "bf16")).adapter
        return {
            "parameters": count_parameters(self.settings.model),
            "learning": count_learning_parameters(self.settings.model, adapter),
            "tokens_per_step": self.tokens_per_step,
            "steps": self.steps,
            "contestants": rows,
            "first_round": trials,
        }

    def run(self, name: str, form: str) -> Measured:
        """One run of a contestant, in a process of its own."""
        self.runs += 1
        seconds_file = self.folder / f"seconds-{self.runs}.json"
        if name == "peft":
            train = self.settings.train
            job = {
                "base": str(self.folder / "hf"), "batches": str(self.folder / "batches.pt"), "out": str(seconds_file),
                "threads": CORES, "form": form, "micro_batch_size": train.micro_batch_size, "r": RANK, "alpha": ALPHA,
            }  # fmt: skip
            described = self.folder / f"job-{self.runs}.json"
            described.write_text(json.dumps(job))
            peak = _peak([sys.executable, str(Path(__file__).with_name("adapters_worker.py")), str(described)])
            seconds = json.loads(seconds_file.read_text())
        else:
            config = self.config_of(name, form)
            run_dir = yaml.safe_load(config.read_text())["run_dir"]
            peak = _peak([sys.executable, "-m", "bigtrain", "train", str(config)])
            lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
            seconds = [json.loads(line)["step_seconds"] for line in lines]
        return Measured(self.tokens_per_step / statistics.median(seconds[WARMUP_STEPS:]), peak)

    def config_of(self, name: str, form: str) -> Path:
        """The configuration of a run of bigtrain."""
        document = json.loads(json.dumps(self.document))
        document["run_dir"] = str(self.folder / f"run-{self.runs}")
        document["model"]["init_from"] = str(self.folder / "weights")
        if name == "bigtrain":
            document["adapter"] = {"method": "lora", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["*_proj"]}
        document["train"] |= {"steps": self.steps}
        document["schedule"] = {"name": "constant"}
        document["engine"] = {"zero_stage": 1, "precision": form}
        document["evaluate"] = {"max_sequences": 1}
        document["checkpoint"], document["tracking"] = {}, {"wandb": "disabled"}
        path = self.folder / f"config-{self.runs}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path


def _peak(command: list[str]) -> int:
    """Run a command; the largest resident set of its process, in bytes. Raises CalledProcessError."""
    environ = {**os.environ, "OMP_NUM_THREADS": str(CORES), "DS_ACCELERATOR": "cpu"}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        print(output, file=sys.stderr)
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return usage.ru_maxrss * 1024  # Linux counts in KiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("benchmarks/llama-30m.yaml"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timed-tokens", type=int, default=20_000, help="of a run: about so many, in whole steps")
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    args = parser.parse_args()
    result: dict[str, Any] = {"config": str(args.config), "load_at_start": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        result |= Race(args.config, Path(folder), args.timed_tokens).result(args.repeats)
    result["load_at_end"] = os.getloadavg()[0]
    for name, row in result["contestants"].items():
        faster, larger = row["bigtrain_is_faster_by"], row["memory_over_that_of_bigtrain"]
        print(
            f"{name:14} {row['form']:14} {row['tokens_per_second']['median']:9,.0f} tokens/s, "
            f"{row['peak_bytes']['median'] / 2**20:7,.0f} MiB; bigtrain is faster by {faster['median']:.2f} "
            f"({faster['min']:.2f} to {faster['max']:.2f}), memory {larger['median']:.2f} times as much"
        )
    print(write_result("adapters", result, args.out))


if __name__ == "__main__":
    main()

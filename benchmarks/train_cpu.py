"""Training speed on a CPU, side by side: bigtrain, a nanoGPT-style loop, the transformers Trainer with and without
DeepSpeed, litgpt; torchtitan's answer is kept, too.

    python benchmarks/train_cpu.py [--config configs/quickstart.yaml --config benchmarks/llama-30m.yaml]
                                   [--repeats 5] [--timed-tokens 140000] [--peers /tmp/peers]

Same architecture, same batches, same number of cores, bf16 compute with float32 master weights, fused AdamW, gradient
clipping. Every contestant runs in processes of its own. In a first round each of its forms runs once (one process with
all cores or a process a core, compiled or not; all in float32 too, where the CPU has no bf16 instructions and float32
is what one would take), and only its fastest goes on; the contestants then take turns, so that a drift of the machine's
speed hits all alike. Timed is the whole optimizer step, data loading included, without the
first few. bigtrain is the ordinary command (`bigtrain train` under torchrun), its step times those of metrics.jsonl.

MFU is by the field's convention, relative to the matrix product measured here before every round, in a process a core
at the same time: in bf16, or in float32 where the CPU has no instructions for it. `mfu` is of the best rate of all
rounds; `mfu_in_round` of what the products reached in the same round, for a machine that others slow down at times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peers import environment, reason, version
from record import spread, write_result

from bigtrain.config import Settings, load_settings
from bigtrain.launcher.torchrun import MALLOC_FOR_TENSORS
from bigtrain.model import product_dtype

CONFIGS = [Path("configs/quickstart.yaml"), Path("benchmarks/llama-30m.yaml")]
WARMUP_STEPS = 3
CORES = len(os.sched_getaffinity(0))
LIMIT_SECONDS = 1200
WHAT = {
    "bigtrain": "bigtrain train",
    "nanogpt": "nanoGPT's loop (autocast, DistributedDataParallel) around a plain Llama",
    "nanogpt-malloc": "the same, with the settings of malloc that bigtrain's launcher makes",
    "trainer": "transformers Trainer, transformers' Llama",
    "trainer-deepspeed": "transformers Trainer with DeepSpeed ZeRO-2, transformers' Llama",
    "litgpt": "litgpt's model, in the loop of its pretrain",
}


@dataclass(frozen=True)
class Form:
    """One way of running a contestant."""

    contestant: str
    processes: int
    compile: bool = False
    precision: str = "bf16"

    @property
    def threads(self) -> int:
        return CORES // self.processes

    def __str__(self) -> str:
        threads = f"{self.processes} x {self.threads} threads"
        return f"{self.contestant}, {self.precision}, {threads}{', compiled' if self.compile else ''}"


PRECISIONS = ["bf16", "fp32"] if product_dtype(torch.bfloat16, torch.device("cpu")) == torch.float32 else ["bf16"]


def forms_of(contestants: Sequence[str], spreads: Sequence[int]) -> dict[str, list[Form]]:
    """What is tried of these contestants, with so many processes."""
    return {
        name: [
            Form(name, processes, compile, precision)
            for precision in PRECISIONS
            for processes in spreads
            if processes > 1 or name not in ("trainer-deepspeed", "nanogpt-malloc")
            for compile in ([False] if name.startswith("trainer") else [False, True])
        ]
        for name in contestants
    }


class Race:
    """All contestants on one model and its batches."""

    def __init__(
        self, config: Path, folder: Path, peers: Path, timed_tokens: int, forms: dict[str, list[Form]]
    ) -> None:
        self.config, self.folder, self.peers, self.forms = config, folder, peers, forms
        self.settings = load_settings(config)
        self.tokens_per_step = self.settings.train.global_batch_size * self.settings.data.sequence_length
        self.steps = WARMUP_STEPS + max(4, timed_tokens // self.tokens_per_step)
        self.batches = folder / "batches.pt"
        torch.save(first_batches(self.settings, self.steps), self.batches)
        self.runs = 0

    def result(self, repeats: int) -> dict[str, Any]:
        trials: dict[str, float | str] = {}
        for forms in self.forms.values():
            for form in forms:
                trials[str(form)] = self._tried(form)
                print(f"tried    {form!s:52} {_rate(trials[str(form)])}", flush=True)
        fastest = {}
        for name, forms in self.forms.items():
            finished = {form: rate for form in forms if isinstance(rate := trials[str(form)], float)}
            if finished:
                fastest[name] = max(finished, key=lambda form: finished[form])
        rates: dict[str, list[float]] = {name: [] for name in fastest}
        peaks = []
        for repeat in range(repeats):
            peaks.append(matmul_peak())
            for name, form in fastest.items():
                rates[name].append(self._tokens_per_second(form))
                print(f"{repeat + 1}/{repeats}      {form!s:52} {_rate(rates[name][-1])}", flush=True)
        return self._report(fastest, rates, peaks, trials)

    def _report(
        self,
        fastest: dict[str, Form],
        rates: dict[str, list[float]],
        peaks: list[float],
        trials: dict[str, float | str],
    ) -> dict[str, Any]:
        from bigtrain.model import count_parameters, flops_per_token

        model, length = self.settings.model, self.settings.data.sequence_length
        flops, peak = flops_per_token(model, length), max(peaks)
        rows: dict[str, Any] = {}
        print(
            f"\n{self.config}: {count_parameters(model):,} parameters, {length} tokens, peak {peak / 1e9:.0f} GFLOP/s"
        )
        print(f"{'':52} {'tokens/s':>10} {'MFU':>7} {'meanw.':>7}  bigtrain is faster by (median, range over rounds)")
        for name, values in rates.items():
            ratios = [ours / theirs for ours, theirs in zip(rates["bigtrain"], values, strict=True)]
            rows[name] = {
                "what": WHAT[name],
                "form": str(fastest[name]),
                "tokens_per_second": spread(values),
                "mfu": statistics.median(values) * flops / peak,
                "mfu_in_round": spread(
                    [rate * flops / meanwhile for rate, meanwhile in zip(values, peaks, strict=True)]
                ),
                "bigtrain_is_faster_by": spread(ratios),
            }
            print(
                f"{fastest[name]!s:52} {statistics.median(values):10,.0f} {rows[name]['mfu']:7.1%} "
                f"{rows[name]['mfu_in_round']['median']:7.1%}  "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )
        return {
            "config": str(self.config),
            "parameters": count_parameters(model),
            "sequence_length": length,
            "tokens_per_step": self.tokens_per_step,
            "steps": self.steps,
            "matmul_peak_flops": peak,
            "matmul_flops_of_rounds": peaks,
            "flops_per_token": flops,
            "causal_flops_per_token": flops_per_token(model, length, causal=True),
            "contestants": rows,
            "first_round": trials,
        }

    def _tried(self, form: Form) -> float | str:
        """Tokens a second, or why a peer has none."""
        try:
            return self._tokens_per_second(form)
        except subprocess.SubprocessError as error:
            if form.contestant == "bigtrain" and not form.compile:
                print(getattr(error, "stderr", None) or error, file=sys.stderr)
                raise
            return reason(error)

    def _tokens_per_second(self, form: Form) -> float:
        self.runs += 1
        seconds = self._bigtrain(form) if form.contestant == "bigtrain" else self._peer(form)
        return self.tokens_per_step / statistics.median(seconds[WARMUP_STEPS:])

    def _bigtrain(self, form: Form) -> list[float]:
        """Step seconds of the ordinary command, from its metrics."""
        run_dir = self.folder / f"run-{self.runs}"
        overrides = [
            f"run_dir={run_dir}", f"train.steps={self.steps}", "schedule.warmup_steps=2", "schedule.decay_steps=2",
            "evaluate.every_steps=null", "evaluate.max_sequences=1", "checkpoint.every_steps=null",
            "tracking.wandb=disabled", f"engine.compile={str(form.compile).lower()}",
            f"engine.precision={form.precision}",
        ]  # fmt: skip
        environ = {**os.environ, "NPROC": str(form.processes), "PYTHON": sys.executable}
        _run(["launch/local.sh", str(self.config), *overrides], environ)
        return [json.loads(line)["step_seconds"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]

    def _peer(self, form: Form) -> list[float]:
        m = self.settings.model
        out = self.folder / f"seconds-{self.runs}.json"
        job = self.folder / f"job-{self.runs}.json"
        described = {
            "peer": form.contestant.partition("-")[0],
            "compile": form.compile,
            "precision": form.precision,
            "deepspeed": form.contestant == "trainer-deepspeed",
            "threads": form.threads,
            "shape": {
                "hidden_size": m.hidden_size,
                "num_hidden_layers": m.num_hidden_layers,
                "num_attention_heads": m.num_attention_heads,
                "num_key_value_heads": m.key_value_heads,
                "intermediate_size": m.intermediate_size,
                "vocab_size": m.vocab_size,
                "max_position_embeddings": m.max_position_embeddings,
                "tie_word_embeddings": m.tie_word_embeddings,
            },
            "micro_batch_size": min(
                self.settings.train.micro_batch_size, self.settings.train.global_batch_size // form.processes
            ),
            "batches": str(self.batches),
            "out": str(out),
        }
        job.write_text(json.dumps(described))
        python = environment(self.peers, "litgpt") if form.contestant == "litgpt" else Path(sys.executable)
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={form.processes}"]
        alone = form.processes == 1
        worker = str(Path(__file__).with_name("train_cpu_worker.py"))
        environ = {**os.environ, "OMP_NUM_THREADS": str(form.threads), "DS_ACCELERATOR": "cpu"}
        if form.contestant == "nanogpt-malloc":
            environ["GLIBC_TUNABLES"] = MALLOC_FOR_TENSORS
        _run([str(python), *([] if alone else torchrun), worker, str(job)], environ)
        seconds: list[float] = json.loads(out.read_text())
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, action="append", help="may be given several times")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=sorted({CORES, 1}), help="forms to try")
    parser.add_argument("--timed-tokens", type=int, default=140_000, help="of a run: about so many, in whole steps")
    parser.add_argument("--contestants", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "bigtrain-peers")
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    args = parser.parse_args()
    torch.set_num_threads(CORES)
    load = os.getloadavg()[0]
    results: dict[str, Any] = {"load_at_start": load, "torchtitan": torchtitan(args.peers), "models": {}}
    results["litgpt"] = version(environment(args.peers, "litgpt"), "litgpt")
    print(f"load {load:.1f}; torchtitan: {results['torchtitan']}")
    for config in args.config or CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            forms = forms_of(["bigtrain", *(name for name in args.contestants if name != "bigtrain")], args.processes)
            race = Race(config, Path(folder), args.peers, args.timed_tokens, forms)
            results["models"][config.stem] = race.result(args.repeats)
        results["load_at_end"] = os.getloadavg()[0]
        print(f"\n{write_result('train_cpu', results, args.out)}")  # one model's result is there if another's fails


def torchtitan(peers: Path) -> str:
    """What torchtitan says when its smallest model is to be trained without a GPU."""
    python = environment(peers, "torchtitan")
    environ = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    environ["MASTER_PORT"] = "29513"
    command = [str(python), "-m", "torchtitan.train", "--module", "llama3", "--config", "llama3_debugmodel"]
    try:
        with tempfile.TemporaryDirectory() as folder:  # it writes its logs where it stands
            _run(command, environ, folder)
    except subprocess.SubprocessError as error:
        return f"{version(python, 'torchtitan')} does not run: {reason(error)}"
    return f"{version(python, 'torchtitan')} runs, and is not measured"


def matmul_peak() -> float:
    """The best rate of a square product, in the type in which bf16 is multiplied here, FLOP/s of a process a core."""
    script = (
        "import torch; from bigtrain.model import product_dtype;"
        "from bigtrain.observe.peak_flops import measure_matmul_peak;"
        "cpu = torch.device('cpu');"
        "print(measure_matmul_peak(cpu, product_dtype(torch.bfloat16, cpu), seconds=3.0))"
    )
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", script], env=environ, stdout=subprocess.PIPE, text=True)
        for _ in range(CORES)
    ]
    return sum(float(process.communicate()[0]) for process in processes)


def first_batches(settings: Settings, steps: int) -> torch.Tensor:
    """The token ids that bigtrain trains on in its first steps: [steps, batch, length + 1]."""
    from bigtrain.data import Loader
    from bigtrain.data.run_data import RunData

    data = RunData.open(settings)
    rows = []
    with Loader(data.plan, data.train, micro_batch_size=settings.train.global_batch_size) as loader:
        for _ in range(steps):
            (batch,) = (micro_batch.to("cpu") for micro_batch in next(loader).micro_batches)
            # A label that is masked between documents is an end of text here: peers know no documents.
            last = batch.labels[:, -1:].clamp(min=0)
            rows.append(torch.cat((batch.input_ids, last), dim=1))
    return torch.stack(rows)


def _run(command: list[str], environ: dict[str, str], folder: str | None = None) -> None:
    """Run a command, in a folder of its own where it writes where it stands."""
    subprocess.run(command, env=environ, cwd=folder, check=True, capture_output=True, text=True, timeout=LIMIT_SECONDS)


def _rate(rate: float | str) -> str:
    return rate if isinstance(rate, str) else f"{rate:10,.0f} tokens/s"


if __name__ == "__main__":
    main()

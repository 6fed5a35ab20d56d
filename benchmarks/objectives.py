"""The loader with each objective, and a masked language model against the transformers Trainer.

    PYTHONPATH=. python benchmarks/objectives.py [--data DIR] [--seconds 3] [--repeats 5] [--parts loader,training]

DIR holds data whose tokenizer has the tokens of all objectives; without it they are built from the standard library.

Loader: samples of 2,048 tokens, batches of 8, from the page cache; million tokens per second of processor time of the
whole process ("a core"). The objectives take turns, and `causal` is the baseline of the ratios.

Training: a BERT of 29 million parameters, the same batches of masked tokens for both, bf16 where the CPU has
instructions for it, one process with all cores, whole optimizer steps without the first three.

Dropout: the same two, each with and without dropout of 0.1 at the embeddings, attention weights and residual branches.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import spread, write_result

from bigtrain.config import Settings
from bigtrain.data import Loader, RunData, open_objective
from bigtrain.model import product_dtype

TOKENS = ["<pad>", "[MASK]", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", *(f"<extra_id_{n}>" for n in range(100))]
OBJECTIVES: dict[str, dict[str, Any]] = {
    "causal": {},
    "masked": {"name": "masked"},
    "masked, whole words": {"name": "masked", "whole_words": True},
    "fill_in_the_middle": {"name": "fill_in_the_middle"},
    "prefix": {"name": "prefix"},
    "permutation": {"name": "permutation"},
    "span_corruption": {"name": "span_corruption"},
    "denoising": {"name": "denoising"},
}
LENGTH, BATCH, WARMUP_STEPS = 2048, 8, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", default="loader,training,dropout")
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or built(Path(folder))
        parts = args.parts.split(",")
        result: dict[str, Any] = {}
        if "loader" in parts:
            result["loader"] = loaders(data, args.seconds, args.repeats)
        if "training" in parts:
            result["training"] = training(data, args.repeats)
        if "dropout" in parts:
            result["dropout"] = dropout(data, args.repeats)
    print(write_result("objectives", result, args.out).read_text())


def settings(data: Path, objective: dict[str, Any], length: int = LENGTH, batch: int = BATCH) -> Settings:
    architecture = {"masked": "bert"}.get(objective.get("name", ""), "llama")
    return Settings.model_validate(
        {
            "run_dir": "unused",
            "model": {
                "family": architecture,
                "hidden_size": 512,
                "num_hidden_layers": 6,
                "num_attention_heads": 8,
                "intermediate_size": 2048,
                "vocab_size": 16384,
                "max_position_embeddings": length,
            },
            **({"objective": objective} if architecture == "bert" else {}),
            "data": {
                "dir": str(data),
                "sequence_length": length,
                "tokenizer": {"vocab_size": 16384, "additional_special_tokens": TOKENS},
                "sources": [{"name": "source", "kind": "python_stdlib"}],
            },
            "train": {"steps": 1_000, "global_batch_size": batch, "micro_batch_size": batch},
        }
    )


def built(folder: Path) -> Path:
    """The data, from the source code of the standard library."""
    import yaml

    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings(folder / "data", {}).model_dump(mode="json", exclude_none=True)))
    subprocess.run([sys.executable, "-m", "bigtrain", "data", "build", str(config)], check=True)
    return folder / "data"


def loaders(data: Path, seconds: float, repeats: int) -> dict[str, Any]:
    """Million tokens a core and second by objective, and each as a ratio to `causal` in the same round."""
    from bigtrain.config import ObjectiveSettings

    opened = RunData.open(settings(data, {}))
    about = settings(data, {})
    made = {
        name: open_objective(ObjectiveSettings.model_validate(given), about.data, about.model)
        for name, given in OBJECTIVES.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(repeats):
        for name, objective in made.items():
            with Loader(opened.plan, opened.train, micro_batch_size=BATCH, objective=objective) as loader:
                for _ in range(64):
                    next(loader)
                batches, started, wall = 0, time.process_time(), time.perf_counter()
                while time.perf_counter() - wall < seconds:
                    next(loader)
                    batches += 1
                rates[name].append(batches * BATCH * LENGTH / (time.process_time() - started) / 1e6)
    return {
        name: {
            "million tokens a core and second": spread(found),
            "of causal": spread([one / other for one, other in zip(found, rates["causal"], strict=True)]),
        }
        for name, found in rates.items()
    }


def training(data: Path, repeats: int) -> dict[str, Any]:
    """Tokens per second of both on the same batches, turn by turn."""
    rates = tokens_per_second(data, repeats, ["bigtrain", "transformers Trainer"])
    ratios = [one / other for one, other in zip(*rates.values(), strict=True)]
    return {
        "tokens per second": {name: spread(found) for name, found in rates.items()},
        "bigtrain as a multiple of the Trainer": spread(ratios),
        "precision": str(product_dtype(torch.bfloat16, torch.device("cpu"))),
        "median ratio": statistics.median(ratios),
    }


def dropout(data: Path, repeats: int) -> dict[str, Any]:
    """Tokens per second of both with dropout, and as a share of what they are without, turn by turn."""
    names = ("bigtrain", "transformers Trainer")
    rates = tokens_per_second(data, repeats, [f"{name}{with_it}" for name in names for with_it in ("", ", dropout")])
    shares = {
        name: [one / other for one, other in zip(rates[f"{name}, dropout"], rates[name], strict=True)] for name in names
    }
    return {
        "tokens per second": {name: spread(found) for name, found in rates.items()},
        "as a share of those without dropout": {name: spread(found) for name, found in shares.items()},
    }


def tokens_per_second(data: Path, repeats: int, names: list[str]) -> dict[str, list[float]]:
    """Of the contestants of `objectives_worker.py`, turn by turn."""
    dtype = product_dtype(torch.bfloat16, torch.device("cpu"))
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in rates:
            done = subprocess.run(
                [sys.executable, str(Path(__file__).with_name("objectives_worker.py")), name, str(data), str(dtype)],
                capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ".:benchmarks"},
            )  # fmt: skip
            rates[name].append(float(done.stdout.splitlines()[-1]))
    return rates


if __name__ == "__main__":
    main()

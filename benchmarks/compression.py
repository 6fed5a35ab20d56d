"""Size, perplexity and speed of a run's model before and after each form of compression, on a CPU.

    PYTHONPATH=. python benchmarks/compression.py RUN [--rows 64] [--tokens 64] [--repeats 3] [--further-steps 100]

It takes less than eight minutes on two cores that have nothing else to do, of the run of configs/quickstart.yaml.
Perplexity is that of `bigtrain eval`, over all held-out rows that the run evaluates. Speed is that of greedy generation
from one prompt: by bigtrain of the folders, whose integers are floats again in memory, and by llama.cpp of GGUF files.

Quantisation-aware training is compared with rounding afterwards at equal training: the run's model is trained for some
further steps, at a tenth of its rate, as it is or with `compression.weights: int4`. Both are evaluated, and the first
also after `bigtrain compress --quantise int4` by either rounding. The tokens a second are those of its training.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from record import spread, write_result

from bigtrain.convert import QUANTISED_TYPES
from bigtrain.model import Sampling
from bigtrain.trained import Compression, TextModel, compress_run, evaluate_run, export_run_to_gguf
from bigtrain.trained.stored_model import StoredModel

PROMPT = "import "
GROUP_SIZE = 64
"""Weights that share a scale, of all integers here."""
GGUF_TYPES = (None, "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=64, help="calibration rows")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--further-steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    stored = StoredModel.open(args.run)
    rows: dict[str, Any] = {"before": measured(args.run, args)}
    with tempfile.TemporaryDirectory() as name:
        for way, options in ways(stored).items():
            begun = time.perf_counter()
            made = compress_run(args.run, Path(name) / "out", Compression(**options, calibration_rows=args.rows))
            seconds = time.perf_counter() - begun
            rows["before"]["bytes"] = made.bytes_before
            rows[way] = {
                "bytes": made.bytes, "parameters": made.parameters, "sparsity": made.sparsity,
                "seconds": round(seconds, 1), **measured(Path(name) / "out", args),
            }  # fmt: skip
            print(way, rows[way], flush=True)
        further = further_training(args, stored, Path(name))
        gguf = {kind or "floats": of_llama_cpp(args, Path(name) / f"{kind}.gguf", kind) for kind in GGUF_TYPES}
    model = stored.settings.model.model_dump(mode="json")
    result = {
        "load_average": os.getloadavg(), "threads": args.threads, "model": model, "step": stored.step,
        "precision": stored.settings.engine.precision, "new_tokens": args.tokens, "ways": rows, "gguf": gguf,
        "further_training": further,
    }  # fmt: skip
    print(write_result("compression", result, args.out))


def ways(stored: StoredModel) -> dict[str, dict[str, Any]]:
    """What is compared; channels are halved, and so are heads as far as they share keys, where that leaves fewer."""
    model = stored.settings.model
    groups = model.num_attention_heads // model.key_value_heads
    heads = max(groups, model.num_attention_heads // 2 // groups * groups)
    fewer_heads: dict[str, dict[str, Any]] = {
        f"{heads} heads by magnitude": {"heads": heads, "importance": "magnitude"},
        f"{heads} heads by wanda": {"heads": heads},
    }
    return {
        "magnitude 50%": {"prune": "magnitude", "sparsity": 0.5},
        "magnitude 50% of the model": {"prune": "magnitude", "sparsity": 0.5, "scope": "model"},
        "wanda 50%": {"prune": "wanda", "sparsity": 0.5},
        "magnitude 2:4": {"prune": "magnitude", "pattern": (2, 4)},
        "wanda 2:4": {"prune": "wanda", "pattern": (2, 4)},
        **(fewer_heads if heads < model.num_attention_heads else {}),
        "half of the channels by magnitude": {"channels": model.intermediate_size // 2, "importance": "magnitude"},
        "half of the channels by wanda": {"channels": model.intermediate_size // 2},
        "int8 nearest": {"quantise": "int8", "rounding": "nearest"},
        "int4 nearest": {"quantise": "int4", "rounding": "nearest"},
        "int4 gptq": {"quantise": "int4"},
    }


def measured(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Perplexity over all sources together, and tokens a second."""
    sources = evaluate_run(path, None, with_baselines=False).validation
    tokens = sum(source.tokens for source in sources)
    model = TextModel.open(path)
    greedy = Sampling(temperature=0)
    speed = tokens_per_second(
        lambda: len(model.continue_texts([PROMPT], max_new_tokens=args.tokens, sampling=greedy).texts[0].tokens), args
    )
    mean = sum(source.loss * source.tokens for source in sources) / tokens
    return {"perplexity": math.exp(mean), "tokens": tokens, "tokens_per_second": speed}


def further_training(args: argparse.Namespace, stored: StoredModel, folder: Path) -> dict[str, Any]:
    """Perplexity of int4 weights after further training with them, and after further training without and rounding."""
    found: dict[str, Any] = {"steps": args.further_steps, "group_size": GROUP_SIZE}
    for name, section in (("as it is", {}), ("aware of int4", {"weights": "int4", "group_size": GROUP_SIZE})):
        settings = stored.settings.model_dump(mode="json")
        settings["run_dir"] = str(folder / name.replace(" ", "-"))
        settings["model"]["init_from"] = str(args.run.resolve())
        settings["compression"] = section
        settings["train"] |= {"steps": args.further_steps, "tokens": None, "batch_size_warmup": []}
        settings["optimizer"]["learning_rate"] /= 10
        settings["schedule"] = {"name": "constant"}
        settings["engine"]["zero_stage"] = 1
        settings["checkpoint"], settings["tracking"] = {}, {"wandb": "disabled"}
        config = folder / "further.yaml"
        config.write_text(yaml.safe_dump(settings))
        environ = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "DS_ACCELERATOR": "cpu"}
        subprocess.run([sys.executable, "-m", "bigtrain", "train", str(config)], env=environ, check=True)
        run = Path(settings["run_dir"])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        tokens = settings["train"]["global_batch_size"] * settings["data"]["sequence_length"]
        seconds = statistics.median(line["step_seconds"] for line in lines[3:])
        found[name] = {"trained_tokens_per_second": tokens / seconds, **measured(run, args)}
        print(name, found[name], flush=True)
    for rounding in ("nearest", "gptq"):
        out = folder / f"further-{rounding}"
        way = Compression(quantise="int4", rounding=rounding, group_size=GROUP_SIZE, calibration_rows=args.rows)
        compress_run(folder / "as-it-is", out, way)
        found[f"as it is, then {rounding}"] = measured(out, args)
    return found


def of_llama_cpp(args: argparse.Namespace, out: Path, kind: str | None) -> dict[str, Any]:
    """Size of a GGUF file, how far its logits are from ours, and its speed in llama.cpp."""
    import llama_cpp

    assert kind is None or kind in QUANTISED_TYPES
    made = export_run_to_gguf(args.run, out, step=None, dtype="float32", check=True, report=print, quantised=kind)
    theirs = llama_cpp.Llama(str(out), n_ctx=args.tokens + 16, n_threads=args.threads, verbose=False)
    prompt = theirs.tokenize(PROMPT.encode())

    def draw() -> int:
        number = 0
        for _ in theirs.generate(prompt, temp=0.0, reset=True):
            number += 1
            if number == args.tokens:
                break
        return number

    return {
        "bytes": made.bytes, "logit_difference": made.logit_difference,
        "tokens_per_second": tokens_per_second(draw, args),
    }  # fmt: skip


def tokens_per_second(draw: Callable[[], int], args: argparse.Namespace) -> dict[str, Any]:
    """Median and spread over repeats, after one that does not count."""
    draw()
    found = []
    for _ in range(args.repeats):
        begun = time.perf_counter()
        found.append(draw() / (time.perf_counter() - begun))
    return spread(found)


if __name__ == "__main__":
    main()

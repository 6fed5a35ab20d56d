"""Do bigtrain and a transformers loop learn the same? Losses step by step, from the same weights on the same batches.

    python benchmarks/loss_comparison.py [--steps 100] [--gpt2-steps 10]

bigtrain is the ordinary command in two processes (ZeRO 2), its losses are those of metrics.jsonl. The peer is one
process: transformers' model with the initial weights exported from bigtrain, eager attention under a mask that keeps
documents apart, torch's cross-entropy over all logits, AdamW over matrices with decay and vectors without, gradient
clipping, and the same learning rates. Both in float32 ("fp32"), and in bfloat16 with float32 weights ("bf16": autocast
for the peer). How far the peer's own curves of the two precisions are apart says what rounding alone does: at a high
learning rate any two curves part in the end.
The models: the quickstart's at its own learning rate and at a sixth of it, where rounding is not magnified, and one of
GPT-2's size and shape on the quickstart's data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from record import write_result

from bigtrain.config import Settings, load_settings
from bigtrain.convert import export_hf
from bigtrain.data import Loader, MicroBatch
from bigtrain.data.format.tokenizer import TOKENIZER_FILE
from bigtrain.data.run_data import RunData
from bigtrain.engine.schedule import learning_rate
from bigtrain.model import build_model

QUICKSTART = Path("configs/quickstart.yaml")
GPT2 = [
    "model.family=gpt2", "model.hidden_size=768", "model.num_hidden_layers=12", "model.num_attention_heads=12",
    "model.num_key_value_heads=12", "model.intermediate_size=3072", "model.vocab_size=50257",
    "model.max_position_embeddings=1024", "data.sequence_length=512", "train.global_batch_size=4",
    "train.micro_batch_size=2", "optimizer.learning_rate=6.0e-4", "schedule.warmup_steps=3",
]  # fmt: skip

MODELS = {"quickstart": [], "quickstart-1e-3": ["optimizer.learning_rate=1.0e-3"], "gpt2": GPT2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", type=int, default=100, help="of the quickstart's model")
    parser.add_argument("--gpt2-steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for name in args.models:
        steps, changes = args.gpt2_steps if name == "gpt2" else args.steps, MODELS[name]
        for precision in ("fp32", "bf16"):
            overrides = [
                *changes, f"train.steps={steps}", f"engine.precision={precision}",
                f"schedule.decay_steps={max(1, steps // 4)}", "evaluate.every_steps=null", "evaluate.max_sequences=1",
                "checkpoint.every_steps=null", "tracking.wandb=disabled",
            ]  # fmt: skip
            found[f"{name} {precision}"] = compare(f"{name} {precision}", overrides)
        by_rounding = largest_difference(
            *(found[f"{name} {precision}"]["transformers"] for precision in ("fp32", "bf16"))
        )
        found[f"{name} bf16"]["transformers_from_its_fp32"] = by_rounding
        print(f"{name:16} transformers in bf16 and in fp32: at most {by_rounding:.2g} apart", flush=True)
    print(f"\n{write_result('loss_comparison', found, args.out)}")


def compare(name: str, overrides: list[str]) -> dict[str, Any]:
    """Both curves, and how far they are apart."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*overrides, f"run_dir={folder}/run"]
        ours = run_bigtrain(Path(folder) / "run", overrides)
        theirs = run_transformers(load_settings(QUICKSTART, overrides), Path(folder) / "exported")
    apart = largest_difference(ours, theirs)
    print(f"{name:16} {len(ours)} steps, {ours[0]:.4f} to {ours[-1]:.4f}: at most {apart:.2g} apart", flush=True)
    return {"largest_difference": apart, "bigtrain": ours, "transformers": theirs}


def largest_difference(one: list[float], other: list[float]) -> float:
    """Of two curves, in nats."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def run_bigtrain(run_dir: Path, overrides: list[str]) -> list[float]:
    """The losses of the ordinary command."""
    subprocess.run(
        ["launch/local.sh", str(QUICKSTART), *overrides],
        env={**os.environ, "NPROC": "2", "PYTHON": sys.executable},
        check=True,
        capture_output=True,
    )
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def run_transformers(settings: Settings, exported: Path) -> list[float]:
    """The losses of the same work as transformers and PyTorch do it."""
    from transformers import AutoModelForCausalLM

    initial = build_model(settings.model)
    initial.init_weights(settings.train.seed)
    end_of_text = settings.data.tokenizer.end_of_text
    weights = {name: parameter.detach() for name, parameter in initial.named_parameters()}
    export_hf(
        weights,
        settings.model,
        settings.data.dir / TOKENIZER_FILE,
        exported,
        end_of_text=end_of_text,
        dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32, attn_implementation="eager")
    optimizer = adamw(model, settings)
    return [step(model, optimizer, settings, number, batch) for number, batch in enumerate(batches(settings), 1)]


def adamw(model: torch.nn.Module, settings: Settings) -> torch.optim.AdamW:
    """Matrices decay, vectors do not."""
    chosen = settings.optimizer
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": chosen.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=chosen.betas, eps=chosen.eps)


def batches(settings: Settings) -> Iterator[tuple[MicroBatch, ...]]:
    """The global batch of every step, in micro-batches."""
    data = RunData.open(settings)
    with Loader(data.plan, data.train, micro_batch_size=settings.train.micro_batch_size) as loader:
        for _ in range(settings.total_steps):
            yield tuple(micro_batch.to("cpu") for micro_batch in next(loader).micro_batches)


def step(
    model: torch.nn.Module,
    optimizer: torch.optim.AdamW,
    settings: Settings,
    number: int,
    batch: tuple[MicroBatch, ...],
) -> float:
    """One optimizer step; the mean loss over the labelled tokens."""
    rate = learning_rate(number, settings.schedule_length, settings.schedule, settings.optimizer.learning_rate)
    for group in optimizer.param_groups:
        group["lr"] = rate
    label_tokens = sum(int((micro_batch.labels != -100).sum()) for micro_batch in batch)
    total = 0.0
    bf16 = settings.engine.precision == "bf16"
    for micro_batch in batch:
        inputs = micro_batch.model_inputs()
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext():
            logits = model(
                input_ids=inputs["input_ids"],
                position_ids=inputs["position_ids"],
                attention_mask=document_mask(inputs["input_ids"], inputs["cu_seqlens"]),
                use_cache=False,
            ).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), inputs["labels"].flatten(), reduction="sum")
        (loss / label_tokens).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optimizer.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total / label_tokens


def document_mask(input_ids: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """[B, 1, T, T], 0 where a token sees another and the lowest number elsewhere: eager attention adds it."""
    rows, length = input_ids.shape
    document = torch.bucketize(torch.arange(rows * length), cu_seqlens[1:], right=True).view(rows, length)
    visible = (document[:, :, None] == document[:, None, :]) & torch.ones(length, length).tril().bool()
    return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[:, None]


if __name__ == "__main__":
    main()

"""What the engine's tests share: a small real transformer, ragged batches, plain PyTorch loops, and a launcher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from bigtrain.config.settings import Settings
from bigtrain.model.layers.float8 import Float8Linear
from tests import forkserver
from tests.engine.plain_optimizers import plain_optimizers

VOCAB, SEQUENCE = 96, 16
GLOBAL_BATCH = 8
STAGES = (0, 1, 2, 3)
HALF = 4
PARITY_STEPS = 16


class Shape(NamedTuple):
    """How state is cut."""

    stage: int
    world: int


SHAPES = [Shape(stage, world) for stage in STAGES for world in (1, 2, 4)]
QUICK_SHAPES = [Shape(0, 1), Shape(1, 2), Shape(2, 4), Shape(3, 2)]


class TinyDecoder(nn.Module):
    """Norms, biases, attention, an MLP and a head that may be tied: one of everything the engine must treat right."""

    def __init__(
        self,
        hidden: int = 32,
        layers: int = 2,
        heads: int = 2,
        tied: bool = False,
        vocab: int = VOCAB,
        linear: type[nn.Linear] = nn.Linear,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(vocab, hidden)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention_norm": nn.RMSNorm(hidden),
                    "qkv": linear(hidden, 3 * hidden, bias=False),
                    "out": linear(hidden, hidden, bias=False),
                    "mlp_norm": nn.RMSNorm(hidden),
                    "up": linear(hidden, 3 * hidden),
                    "down": linear(3 * hidden, hidden),
                }
            )
            for _ in range(layers)
        )
        self.norm = nn.RMSNorm(hidden)
        self.head = nn.Linear(hidden, vocab, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        batch, length, hidden = x.shape
        for block in self.layers:
            qkv = block["qkv"](block["attention_norm"](x)).view(batch, length, 3, self.heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["out"](attended.transpose(1, 2).reshape(batch, length, hidden))
            x = x + block["down"](F.silu(block["up"](block["mlp_norm"](x))))
        logits = self.head(self.norm(x)).float()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")


def build(case: dict[str, Any]) -> TinyDecoder:
    """The same weights every time."""
    torch.manual_seed(1234)
    model = TinyDecoder(tied=case.get("tied", False), linear=Float8Linear if case.get("float8") else nn.Linear)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.08) if parameter.ndim > 1 else nn.init.uniform_(parameter, 0.5, 1.0)
    return model


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Step's global batch: tokens and labels [GLOBAL_BATCH, SEQUENCE]; the later the sample, the fewer its labels."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCAB // 3, (GLOBAL_BATCH, SEQUENCE + 1), generator=generator)
    labels = tokens[:, 1:].clone()
    for sample in range(GLOBAL_BATCH):
        labels[sample, : sample * 2] = -100
    return tokens[:, :-1], labels


def learning_rate(step: int) -> float:
    return 4e-3 / (1 + step / 10)


def settings(case: dict[str, Any]) -> Settings:
    return Settings.model_validate(
        {
            "run_dir": "unused",
            "model": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 96,
                "vocab_size": VOCAB,
                "max_position_embeddings": SEQUENCE,
            },
            "data": {
                "dir": "unused",
                "tokenizer": {"vocab_size": VOCAB},
                "sources": [{"name": "x", "kind": "python_stdlib"}],
                "sequence_length": SEQUENCE,
            },
            "train": {
                "steps": 30,
                "global_batch_size": GLOBAL_BATCH,
                "micro_batch_size": case.get("micro_batch_size", 2),
            },
            "optimizer": {"max_grad_norm": case.get("max_grad_norm", 1.0), **case.get("optimizer", {})},
            "engine": {"zero_stage": case["stage"], "precision": case.get("precision", "fp32")},
        }
    )


def plain_loop(case: dict[str, Any], steps: int) -> dict[str, Any]:
    """The yardstick: one process, no DeepSpeed, no fused kernels.

    fp32: the whole global batch in one pass. bf16: float32 masters beside a bfloat16 model, gradients of the
    micro-batches added up in float32.
    """
    torch.set_num_threads(1)  # the model is too small for more
    model = build(case)
    chosen = settings(case).optimizer
    bf16 = case.get("precision") == "bf16"
    if bf16:
        model.to(torch.bfloat16)
    masters = [p.detach().float().clone().requires_grad_() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    optimizers = plain_optimizers(dict(zip(names, masters, strict=True)), chosen)
    micro = case.get("micro_batch_size", 2) if bf16 else GLOBAL_BATCH
    losses, norms = [], []
    for step in range(steps):
        tokens, labels = batch(step)
        scale = 1 / int((labels != -100).sum())
        total = 0.0
        for master in masters:
            master.grad = torch.zeros_like(master)
        for start in range(0, GLOBAL_BATCH, micro):
            model.zero_grad()
            loss = model(tokens[start : start + micro], labels[start : start + micro])
            (loss * scale).backward()
            total += float(loss.detach())
            for master, parameter in zip(masters, model.parameters(), strict=True):
                master.grad += parameter.grad.float()
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            for frozen in group["params"] if group["lr_scale"] == 0 and not case.get("frozen_count") else ():
                frozen.grad.zero_()
        norm = torch.linalg.vector_norm(torch.stack([m.grad.norm() for m in masters]))
        if chosen.max_grad_norm:
            for master in masters:
                master.grad *= min(1.0, chosen.max_grad_norm / (float(norm) + 1e-6))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step) * group["lr_scale"]
            optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.copy_(master)
        losses.append(total * scale)
        norms.append(float(norm))
    return {"losses": losses, "norms": norms}


def train(engine: Any, topology: Any, case: dict[str, Any], steps: range) -> dict[str, Any]:
    """The same with the engine: this rank's samples, in micro-batches."""
    micro, share = case.get("micro_batch_size", 2), GLOBAL_BATCH // topology.world_size
    losses, norms = [], []
    for step in steps:
        tokens, labels = (t[topology.rank * share : (topology.rank + 1) * share] for t in batch(step))
        (label_tokens,) = topology.sum_across_ranks([int((labels != -100).sum())])
        total = 0.0
        for start in range(0, share, micro):
            inputs = {"input_ids": tokens[start : start + micro], "labels": labels[start : start + micro]}
            if step == 10:  # evaluation between micro-batches sees the same weights and disturbs nothing
                before = engine.evaluate(inputs)
            total += (summed := float(engine.forward_backward(inputs, 1 / label_tokens)))
            assert step != 10 or (float(before) == summed and engine.module.training)
        result = engine.step(learning_rate(step))
        assert result.applied
        losses.append(topology.sum_across_ranks([total])[0] / label_tokens)
        norms.append(result.grad_norm)
    return {"losses": losses, "norms": norms}


def launch(worker: Path, job: Any, processes: int, directory: Path, timeout: float = 200) -> Any:
    """Run a worker script on so many ranks; it reads job.json and rank 0 writes result.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "job.json").write_text(json.dumps(job))
    finished = forkserver.torchrun(processes, worker, directory, timeout=timeout)
    assert finished.returncode == 0, finished.stdout[-6000:]
    return json.loads((directory / "result.json").read_text())


def state_case(stage: int) -> dict[str, Any]:
    return {"stage": stage, "precision": "fp32" if stage == 0 else "bf16"}


def parity_cases() -> list[dict[str, Any]]:
    """bf16: accumulation 1 and more, clipping that bites and none, tied and untied. fp32 is in tests/run, with the real
    model."""
    cases = []
    for stage in (1, 2, 3):
        cases.append({"stage": stage, "precision": "bf16", "micro_batch_size": 4, "max_grad_norm": 0.5})
        cases.append({**cases[-1], "micro_batch_size": 2, "max_grad_norm": 0.0, "tied": True})
        cases.append({**cases[-2], "float8": True})
    return cases


def saved(root: Path, shape: Shape) -> Path:
    return root / f"stage-{shape.stage}-world-{shape.world}"


def resaved(root: Path, source: Shape, target: Shape) -> Path:
    return root / "again" / f"{saved(root, source).name}-to-{saved(root, target).name}"

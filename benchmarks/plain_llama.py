"""A Llama decoder and a training loop in the plainest PyTorch: the yardstick for benchmarks, not part of bigtrain."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainLlama(nn.Module):
    """Same architecture as family llama, one causal attention over the whole row."""

    def __init__(self, vocab: int, width: int, layers: int, heads: int, kv_heads: int, inner: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(PlainBlock(width, heads, kv_heads, inner) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        cos_sin = rotary(ids.shape[1], self.blocks[0].head_width, ids.device)  # type: ignore[arg-type]
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, cos_sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), labels.reshape(-1))


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.v = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
        batch, length, _ = x.shape
        h = self.norm1(x)
        q = rotate(self.q(h).view(batch, length, self.heads, -1).transpose(1, 2), cos_sin)
        k = rotate(self.k(h).view(batch, length, self.kv_heads, -1).transpose(1, 2), cos_sin)
        v = self.v(h).view(batch, length, self.kv_heads, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, -1))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def rotary(length: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    angles = torch.outer(torch.arange(length, device=device), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (t.to(x.dtype) for t in cos_sin)
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def train(
    model: nn.Module,
    batches: Tensor,
    micro_batch_size: int,
    *,
    returns_output: bool = False,
    device: str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    bf16: bool = True,
) -> list[float]:
    """Train with bf16 autocast over float32 weights, as nanoGPT does; seconds of each step.

    Args:
        model: called with (ids, labels) or, with `returns_output`, as transformers models are.
        batches: token ids [steps, batch, length + 1].
        micro_batch_size: samples in one forward pass.
        returns_output: the model returns an object whose `.loss` is the loss.
        device: where to train.
        rank: of this process among `world_size`, which share each batch (DistributedDataParallel).
        world_size: more than one only in an initialised process group.
        bf16: or all in float32.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    replicas = nn.parallel.DistributedDataParallel(model) if world_size > 1 else None
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        parts = batch[rank::world_size].split(micro_batch_size)
        for number, part in enumerate(parts):
            ids, labels = part[:, :-1].to(device), part[:, 1:].to(device)
            if replicas is not None:
                replicas.require_backward_grad_sync = number == len(parts) - 1
            called = replicas or model
            with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
                # transformers shifts the labels itself
                loss = called(input_ids=ids, labels=ids).loss if returns_output else called(ids, labels)
            (loss / len(parts)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds

"""Small models and random packings for the tests of the model."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bigtrain.config.model_settings import ModelSettings


def small_settings(family: str = "llama", **changes: Any) -> ModelSettings:
    shape: dict[str, Any] = {
        "family": family,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2 if family == "llama" else None,
        "intermediate_size": 48,
        "vocab_size": 96,
        "max_position_embeddings": 64,
    }
    return ModelSettings.model_validate(shape | changes)


def random_boundaries(rows: int, length: int, seed: int) -> Tensor:
    """cu_seqlens of a random packing; every row starts a document."""
    generator = random.Random(seed)
    boundaries = {row * length for row in range(rows + 1)}
    boundaries |= {generator.randrange(rows * length) for _ in range(generator.randrange(3 * rows))}
    return torch.tensor(sorted(boundaries), dtype=torch.int32)


def packed_batch(rows: int, length: int, vocab_size: int, seed: int) -> dict[str, Any]:
    """Keyword arguments of the model's forward pass: random tokens in random documents."""
    generator = torch.Generator().manual_seed(seed)
    cu_seqlens = random_boundaries(rows, length, seed)
    lengths = cu_seqlens.diff()
    labels = torch.randint(vocab_size, (rows * length,), generator=generator)
    labels[cu_seqlens[1:].long() - 1] = -100
    return {
        "input_ids": torch.randint(vocab_size, (rows, length), generator=generator),
        "labels": labels.view(rows, length),
        "position_ids": torch.cat([torch.arange(n) for n in lengths.tolist()]).view(rows, length),
        "cu_seqlens": cu_seqlens,
        "max_seqlen": int(lengths.max()),
    }


def relative_error(actual: Tensor, wanted: Tensor, floor: float = 1e-12) -> float:
    """Distance in the Euclidean norm, relative to what is wanted, or to `floor` if that is larger."""
    return float((actual.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=floor))


class CountOperators(TorchDispatchMode):
    """Counts what is really executed, by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def exact_t5(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers normalises in float32; the comparison is of what is computed, and not of how it is rounded."""
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    def normalise(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(T5LayerNorm, "forward", normalise)


def exact_xlnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers makes the vectors of distances in float32 and multiplies them with weights of any type; the
    comparison is of what is computed. They keep the values of float32, which are ours, too."""
    from transformers.models.xlnet.modeling_xlnet import XLNetModel

    made = XLNetModel.relative_positional_encoding
    monkeypatch.setattr(
        XLNetModel, "relative_positional_encoding", lambda self, *args, **kw: made(self, *args, **kw).to(self.dtype)
    )

"""The loss alone, for `train_gpu.py`: the Triton kernel beside PyTorch, in time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest import mock

from record import spread
from train_gpu_cases import model_settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LOSS = "loss"
"""The name of the measurement of the loss."""
MODELS = ("160M", "1B")
TOKENS, REPEATS = 16_384, 10
TINY_TOKENS, TINY_REPEATS = 512, 2


def measure_loss(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Seconds of forward and backward pass in bf16, and what they take beyond their inputs at the peak; of plain
    cross-entropy over all logits, too."""
    import torch

    from bigtrain.model.loss import loss_softmax
    from bigtrain.model.loss.loss import linear_cross_entropy
    from bigtrain.model.loss.shaping import Shaping

    def all_logits(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        logits = torch.nn.functional.linear(hidden, weight).float()
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

    def in_pytorch(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        with mock.patch.object(loss_softmax, "_kernel_works", lambda *_: False):
            return linear_cross_entropy(hidden, weight, labels)

    found: dict[str, Any] = {}
    for name in MODELS:
        model = model_settings(name, tiny)
        torch.manual_seed(0)
        tokens, classes = TINY_TOKENS if tiny else TOKENS, model.vocab_size
        hidden, weight = (
            (torch.randn(n, model.hidden_size, device=device) * model.hidden_size**-0.25).bfloat16().requires_grad_()
            for n in (tokens, classes)
        )
        labels = torch.randint(classes, (tokens,), device=device)
        inputs = (hidden, weight, labels)
        methods: dict[str, Callable[..., Tensor]] = {"all logits": all_logits, "pytorch": in_pytorch}
        softmax, _ = loss_softmax.softmax_for(weight, Shaping())
        if not isinstance(softmax, loss_softmax.SoftmaxInPyTorch):
            methods["kernel"] = linear_cross_entropy
        found[name] = {
            "tokens": tokens,
            "hidden_size": model.hidden_size,
            "vocab_size": classes,
            **{method: measured(compute, inputs, device, tiny) for method, compute in methods.items()},
        }
    return found


def measured(
    compute: Callable[..., Tensor], inputs: tuple[Tensor, Tensor, Tensor], device: torch.device, tiny: bool
) -> dict[str, Any]:
    """Time and memory of one way to compute the loss, and what it comes out as."""
    import torch

    on_gpu = device.type == "cuda"

    def once() -> float:
        started = time.perf_counter()
        torch.autograd.grad(compute(*inputs), inputs[:2])
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    try:
        loss = compute(*inputs).item()
        once()  # compiled by now, and its memory is there
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) if on_gpu else 0
        seconds = [once() for _ in range(TINY_REPEATS if tiny else REPEATS)]
        peak = (torch.cuda.max_memory_allocated(device) - before) / 2**30 if on_gpu else None
    except torch.OutOfMemoryError:
        return {"failure": "out of memory"}
    return {"seconds": spread(seconds), "peak_memory_gib": peak, "loss": loss}


def loss_table(found: dict[str, Any]) -> str:
    """A line for each model and method."""
    if "failure" in found:
        return f"loss alone: {found['failure']}"
    lines = []
    for name, model in found.items():
        shape = f"{model['tokens']:,} tokens of width {model['hidden_size']:,}, {model['vocab_size']:,} classes"
        lines.append(f"loss of {name} alone ({shape}), forward and backward:")
        for method, outcome in model.items():
            if isinstance(outcome, dict):
                lines.append(f"  {method:12}{described(outcome)}")
    return "\n".join(lines)


def described(outcome: dict[str, Any]) -> str:
    """One measurement in words."""
    if "failure" in outcome:
        return str(outcome["failure"])
    seconds, peak = outcome["seconds"], outcome["peak_memory_gib"]
    memory = "" if peak is None else f", {peak:.2f} GiB at the peak"
    return f"{1e3 * seconds['median']:.1f} ms ({1e3 * seconds['min']:.1f} to {1e3 * seconds['max']:.1f}){memory}"

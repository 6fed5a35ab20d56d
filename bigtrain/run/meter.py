"""Tokens per second, MFU and the time left."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch

MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
SMOOTHING_STEPS = 20


def measure_matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """The FLOP/s that this process reaches in a square matrix product on random data.

    MFU on a CPU, or on a GPU without a trusted datasheet, is relative to this figure.

    Args:
        device: where to multiply.
        dtype: the type the model computes in.
        seconds: how long to measure.

    Returns:
        The best rate seen, in FLOP/s (a multiply-add counts as two).
    """
    size = MATMUL_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    left @ right
    while not best or time.perf_counter() < end:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(4):
            left @ right
        _synchronize(device)
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - start))
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Reading:
    """What the meter says of one step."""

    step_seconds: float
    tokens_per_second: float
    mfu: float
    eta_seconds: float


class Meter:
    """Times the steps of one run, evaluation and saving left out."""

    def __init__(self, *, flops_per_token: float, peak_flops: float, total_steps: int) -> None:
        """Set the constants of the run.

        Args:
            flops_per_token: forward and backward FLOPs of one token.
            peak_flops: FLOP/s of all ranks together that count as 100%.
            total_steps: the last step, for the time left.
        """
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.total_steps = total_steps
        self._recent: deque[float] = deque(maxlen=SMOOTHING_STEPS)
        self._started = time.perf_counter()

    def start_step(self) -> None:
        """A step begins now."""
        self._started = time.perf_counter()

    def end_step(self, step: int, tokens: int) -> Reading:
        """The step that began last ends now.

        Args:
            step: its number, from 1.
            tokens: its input tokens over all ranks.
        """
        seconds = time.perf_counter() - self._started
        self._recent.append(seconds)
        typical = sorted(self._recent)[len(self._recent) // 2]
        rate = tokens / seconds
        return Reading(
            step_seconds=seconds,
            tokens_per_second=rate,
            mfu=rate * self.flops_per_token / self.peak_flops,
            eta_seconds=(self.total_steps - step) * typical,
        )

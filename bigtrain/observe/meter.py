"""Tokens per second, model FLOP utilisation (MFU), the parts of a step's time, and the time left.

A step is timed from before its batch is fetched to after its loss is known:

    data               waiting for the loader
    forward_backward   all micro-batches; with ZeRO 2 and 3 their communication too, as far as it is not overlapped
      forward          the forward passes of that: with ZeRO 0 to 2 only a rank's own work
    optimizer          DeepSpeed's step: the rest of the communication, clipping, update
    the rest           agreeing on the step, copying the batch to the device, adding up the loss

On a GPU the parts are timed by events in its own stream. They are read after the loss, which waits for them anyway, so
timing makes no step slower.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from bigtrain.observe.peak_flops import Peak

SMOOTHING_STEPS = 20
"""Steps whose median is the typical step."""
FORWARD, FORWARD_BACKWARD, OPTIMIZER = "forward", "forward_backward", "optimizer"
TRACE_PREFIX = "bigtrain."
"""Prefix of the parts' names in a trace of torch.profiler."""


@dataclass(frozen=True)
class Reading:
    """The measurements of one step."""

    step_seconds: float
    data_seconds: float
    forward_seconds: float
    forward_backward_seconds: float
    optimizer_seconds: float
    tokens_per_second: float
    mfu: float
    """By the field's convention: attention counts as if every token saw the whole sequence."""
    mfu_causal: float
    """With attention as it is: a token sees only the tokens before it."""
    eta_seconds: float


class StageFlops(NamedTuple):
    """Forward and backward FLOPs of one token, from a step on."""

    first_step: int
    per_token: float
    """By the field's convention."""
    causal_per_token: float
    """With attention as it is."""


class Meter:
    """Times the steps of one run, without evaluation and saving."""

    def __init__(
        self,
        flops: Sequence[StageFlops],
        *,
        peak: Peak,
        total_steps: int,
        device: torch.device,
    ) -> None:
        """Set the constants of the run.

        Args:
            flops: of one token, from step 1 and from each step on at which they change.
            peak: the FLOP/s of all ranks that count as 100%.
            total_steps: the last step, for the time left.
            device: where the model computes.
        """
        self._flops = tuple(flops)
        self.peak = peak
        self.total_steps = total_steps
        self._on_gpu = device.type == "cuda"
        self._recent: deque[float] = deque(maxlen=SMOOTHING_STEPS)
        self.start_step()

    def start_step(self) -> None:
        """Start to time a step."""
        self._data_seconds = 0.0
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._started = time.perf_counter()

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside as waiting for the loader."""
        with torch.profiler.record_function(TRACE_PREFIX + "data"):
            started = time.perf_counter()
            yield
            self._data_seconds += time.perf_counter() - started

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Count the work inside, also what it queues on the device, to a part of the step.

        Args:
            part: FORWARD, FORWARD_BACKWARD or OPTIMIZER; it may come more than once.
        """
        with torch.profiler.record_function(TRACE_PREFIX + part):
            if self._on_gpu:
                start, end = torch.cuda.Event(True), torch.cuda.Event(True)  # type: ignore[no-untyped-call]
                start.record()
                yield
                end.record()
                self._events.append((part, start, end))
            else:
                started = time.perf_counter()
                yield
                self._add(part, time.perf_counter() - started)

    def end_step(self, step: int, tokens: int) -> Reading:
        """Return the measurements of the step that started last, whose work on the device is done.

        Args:
            step: its number, counted from 1.
            tokens: its input tokens over all ranks.
        """
        seconds = time.perf_counter() - self._started
        for part, start, end in self._events:
            self._add(part, start.elapsed_time(end) / 1000)
        self._recent.append(seconds)
        rate, flops = tokens / seconds, self.flops_at(step)
        return Reading(
            step_seconds=seconds,
            data_seconds=self._data_seconds,
            forward_seconds=self._seconds.get(FORWARD, 0.0),
            forward_backward_seconds=self._seconds.get(FORWARD_BACKWARD, 0.0),
            optimizer_seconds=self._seconds.get(OPTIMIZER, 0.0),
            tokens_per_second=rate,
            mfu=rate * flops.per_token / self.peak.flops,
            mfu_causal=rate * flops.causal_per_token / self.peak.flops,
            eta_seconds=(self.total_steps - step) * self.typical_step_seconds,
        )

    def flops_at(self, step: int) -> StageFlops:
        """The FLOPs of one token of a step."""
        return next(flops for flops in reversed(self._flops) if flops.first_step <= step)

    @property
    def typical_step_seconds(self) -> float:
        """The median seconds of the last steps; 0 before the first."""
        return statistics.median_high(self._recent) if self._recent else 0.0

    def _add(self, part: str, seconds: float) -> None:
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds

"""The costs in a trace of torch.profiler (Chrome's trace format): of each operator, and of communication that no
computation overlaps.

On a GPU the time is that of the kernels, each counted for the operator that launched it. On a CPU it is the time that
the training thread spends in an operator itself, without the operators that it calls. An instant at which anything
computes counts as computing, one at which only communication runs as communication, and the rest as waiting.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.observe import TRACE_PREFIX

Event = dict[str, Any]
Span = tuple[float, float]

STEP = TRACE_PREFIX + "step"
DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
COMMUNICATION = re.compile(r"^(gloo:|mpi:|ncclDevKernel|ncclKernel|nccl|rccl)")
WAITING = re.compile(r"^c10d::")
"""The thread that waits for communication, not the one that carries it out."""
GENERATED = re.compile(r"^triton_")
"""Kernels of torch.compile: their own name says more than that of the operator that launched them."""


@dataclass(frozen=True)
class Operator:
    """One operator, summed over its calls."""

    name: str
    seconds: float
    """For each step."""
    calls: float
    """For each step."""
    flops: float | None = None
    """FLOPs of a matrix product for each step; None for other operators, or where the shape is unknown."""

    @property
    def rate(self) -> float | None:
        """The FLOP/s that it reached."""
        return self.flops / self.seconds if self.flops and self.seconds else None


@dataclass(frozen=True)
class TraceSummary:
    """Means over the steps of a trace."""

    steps: int
    step_seconds: float
    communication: dict[str, float]
    """Seconds of each step in which only communication ran, by the meter's part of the step ("" for none)."""
    idle_seconds: float
    """Seconds of each step without an operator: a GPU waits for the host, on a CPU Python runs."""
    operators: list[Operator]
    """The most expensive first; of communication the part that no computation overlaps."""


def read_trace(path: Path) -> list[Event]:
    """The events of a trace file, gzipped or not."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    events: list[Event] = json.loads(data)["traceEvents"]
    return [event for event in events if event.get("ph") == "X"]


def summarize(events: Sequence[Event], parts: Sequence[str] = ()) -> TraceSummary:
    """Summarize the steps that are marked in a trace.

    Args:
        events: of one rank, complete ones (phase X).
        parts: the meter's names of parts of a step, by which to divide communication.
    """
    marks = [event for event in events if event["name"] == STEP and event.get("cat") == "user_annotation"]
    steps, thread = [_span(mark) for mark in marks], marks[0]["tid"]
    on_device = [event for event in events if event.get("cat") in DEVICE_CATEGORIES and event.get("dur")]
    calls = _calls_of_kernels(events, on_device) if on_device else _calls_of_thread(events, thread)
    computing = union(span for call in calls if not call.communicates for span in call.spans)
    window = union(steps)
    alone = subtract(union(span for call in calls if call.communicates for span in call.spans), computing)
    where = "gpu_user_annotation" if on_device else "user_annotation"
    inside = {
        part: union(_span(e) for e in events if e["name"] == TRACE_PREFIX + part and e.get("cat") == where)
        for part in parts
    }
    communication = {part: length(intersect(alone, spans)) for part, spans in inside.items()}
    communication[""] = length(intersect(alone, window)) - sum(communication.values())
    return TraceSummary(
        steps=len(steps),
        step_seconds=length(window) / len(steps),
        communication={part: seconds / len(steps) for part, seconds in communication.items()},
        idle_seconds=length(subtract(subtract(window, computing), alone)) / len(steps),
        operators=_operators(calls, alone, window, len(steps)),
    )


@dataclass(frozen=True)
class _Call:
    name: str
    spans: list[Span]
    flops: float | None
    communicates: bool


def _operators(calls: Iterable[_Call], alone: list[Span], window: list[Span], steps: int) -> list[Operator]:
    seconds: dict[str, float] = defaultdict(float)
    flops: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    communicating: dict[str, list[Span]] = defaultdict(list)
    first, last = window[0][0], window[-1][1]
    for call in calls:
        if not call.spans or call.spans[-1][1] <= first or call.spans[0][0] >= last:
            continue
        count[call.name] += 1
        flops[call.name] += call.flops or 0.0
        if call.communicates:
            communicating[call.name] += call.spans
        else:
            seconds[call.name] += sum(end - start for start, end in call.spans)
    for name, spans in communicating.items():
        seconds[name] = length(intersect(union(spans), alone))
    found = [Operator(name, seconds[name] / steps, count[name] / steps, flops[name] / steps or None) for name in count]
    return sorted(found, key=lambda operator: -operator.seconds)


def _calls_of_kernels(events: Iterable[Event], on_device: Iterable[Event]) -> list[_Call]:
    """A kernel belongs to the operator that was innermost when it was launched."""
    by_id = {e["args"]["External id"]: e for e in events if e.get("cat") == "cpu_op" and "External id" in _args(e)}
    calls = []
    for kernel in on_device:
        launcher = by_id.get(_args(kernel).get("External id"))
        if COMMUNICATION.match(kernel["name"]):
            calls.append(_Call(kernel["name"].split("(")[0], [_span(kernel)], None, True))
        elif launcher is None or GENERATED.match(kernel["name"]):
            calls.append(_Call(kernel["name"].split("(")[0], [_span(kernel)], None, False))
        else:
            calls.append(_Call(_label(launcher), [_span(kernel)], None, False))
    # An operator may launch several kernels; its FLOPs are counted once, with the first.
    counted: set[Any] = set()
    for index, kernel in enumerate(on_device):
        identity = _args(kernel).get("External id")
        launcher = by_id.get(identity)
        if launcher is not None and identity not in counted and calls[index].name == _label(launcher):
            counted.add(identity)
            calls[index] = _Call(calls[index].name, calls[index].spans, matmul_flops(launcher), False)
    return calls


def _calls_of_thread(events: Iterable[Event], thread: Any) -> list[_Call]:
    """Operators of one thread, each without those that it calls; and communication, which has threads of its own."""
    calls = [_Call(event["name"], [_span(event)], None, True) for event in events if COMMUNICATION.match(event["name"])]
    mine = [
        event
        for event in events
        if event.get("cat") == "cpu_op" and event["tid"] == thread and not WAITING.match(event["name"])
    ]
    open_ones: list[tuple[Event, list[Span]]] = []

    def close(until: float) -> None:
        while open_ones and _span(open_ones[-1][0])[1] <= until:
            event, children = open_ones.pop()
            own = subtract([_span(event)], union(children))
            calls.append(_Call(_label(event), own, matmul_flops(event), False))

    for event in sorted(mine, key=lambda e: (_span(e)[0], -_span(e)[1])):
        close(_span(event)[0])
        if open_ones:
            open_ones[-1][1].append(_span(event))
        open_ones.append((event, []))
    close(float("inf"))
    return calls


def _label(operator: Event) -> str:
    shapes = _factors(operator)
    if shapes is None:
        return str(operator["name"])
    left, right = ("x".join(map(str, shape)) for shape in shapes)
    return f"{operator['name']} {left} @ {right}"


# Which inputs of an operator are the two factors.
_FACTORS: dict[str, tuple[int, int]] = {
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::baddbmm": (1, 2),
    "aten::_scaled_mm": (0, 1),
}


def _factors(operator: Event) -> tuple[list[int], list[int]] | None:
    where = _FACTORS.get(operator["name"])
    shapes = _args(operator).get("Input Dims", [])
    if where is None or len(shapes) <= max(where) or any(len(shapes[i]) not in (2, 3) for i in where):
        return None
    return shapes[where[0]], shapes[where[1]]


def matmul_flops(operator: Event) -> float | None:
    """2 m k n, times the batch; None where the operator is no matrix product of known shape."""
    shapes = _factors(operator)
    if shapes is None:
        return None
    (*batch, m, k), n = shapes[0], shapes[1][-1]
    return 2.0 * m * k * n * (batch[0] if batch else 1)


def _args(event: Event) -> dict[str, Any]:
    arguments: dict[str, Any] = event.get("args", {})
    return arguments


def _span(event: Event) -> Span:
    """In seconds; the trace has microseconds."""
    return event["ts"] / 1e6, (event["ts"] + event.get("dur", 0)) / 1e6


def union(spans: Iterable[Span]) -> list[Span]:
    """The same instants, in order and apart from each other."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        elif end > start:
            joined.append((start, end))
    return joined


def intersect(left: Sequence[Span], right: Sequence[Span]) -> list[Span]:
    """Instants in both; both as `union` gives them."""
    found, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            found.append((start, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return found


def subtract(left: Sequence[Span], right: Sequence[Span]) -> list[Span]:
    """Instants in the first and not in the second; both as `union` gives them."""
    edges = [float("-inf"), *(edge for span in right for edge in span), float("inf")]
    return intersect(left, list(zip(edges[::2], edges[1::2], strict=True)))


def length(spans: Iterable[Span]) -> float:
    """Seconds in all."""
    return sum(end - start for start, end in spans)

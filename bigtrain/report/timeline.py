"""Where a run's time went, from its ledger: as one bar, as a table, and from its first second to its last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from bigtrain.base import duration
from bigtrain.report.chart import EventMark, ticks
from bigtrain.report.figure import ROW, Size
from bigtrain.report.page import render
from bigtrain.rundir import CLASSES, MICRO, Event, Ledger, label

COLORS = {
    "training": "#1d4ed8",
    "recomputed": "#dc2626",
    "data_stall": "#d97706",
    "checkpoint": "#0891b2",
    "evaluation": "#7c3aed",
    "start_up": "#64748b",
    "data_build": "#94a3b8",
    "hang": "#7f1d1d",
    "restart": "#ec4899",
    "idle": "#e2e8f0",
    "queue": "#cbd5e1",
    "other": "#a8a29e",
}
EVENTS = {
    "restart": ("#334155", False),
    "hang": ("#7f1d1d", False),
    "spike": ("#d97706", False),
    "rewind": ("#dc2626", False),
    "fallback": ("#7c3aed", False),
    "corruption": ("#be123c", False),
    "not finite": ("#be123c", False),
    "straggler": ("#a16207", False),
    "stage": ("#15803d", False),
    "stop": ("#475569", False),
    "save": ("#0891b2", True),
}
"""The events that charts show: their colour, and whether they are ticks on the axis, as there are many."""
DETAILS = ("reason", "problems", "seconds", "from_checkpoint", "rank", "sequence_length")
"""The fields of an event that its mark shows."""
UNITS = ((2 * 86400.0, 86400.0, "days"), (2 * 3600.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
BAR, TOP, COLUMN = 56, 58, 3

Rectangle = tuple[str, str, str, str, str]
"""Left, top, width, height and colour."""


def marks_of(events: Sequence[Mapping[str, Any]], positions: Sequence[float | None]) -> list[EventMark]:
    """What charts show of the events, each at its position on the horizontal axis; None: nowhere."""
    marks = []
    for event, position in zip(events, positions, strict=True):
        name = "restart" if event["event"] == Event.RESUME else event["event"]
        if name in EVENTS and position is not None and not (name == "stop" and event.get("exit_status") == 0):
            color, small = EVENTS[name]
            marks.append(EventMark(position, name, color, _description(name, event), small))
    return marks


def _description(name: str, event: Mapping[str, Any]) -> str:
    """An event for people: `hang at step 9, seconds 31.0, 2026-09-21 14:03:00 UTC`."""
    details = [f"{key.replace('_', ' ')} {value}" for key, value in event.items() if key in DETAILS]
    with suppress(KeyError, TypeError, ValueError, OverflowError, OSError):  # no time, or none that a calendar has
        details.append(f"{datetime.fromtimestamp(event['time'], UTC):%Y-%m-%d %H:%M:%S} UTC")
    return ", ".join([f"{name} at step {event.get('step', '?')}", *details])


def goodput_parts(ledger: Ledger) -> list[dict[str, Any]]:
    """What the template goodput.html shows of each class that the run has spent time in."""
    wall = ledger.wall_seconds or 1.0
    return [
        {
            "name": label(name),
            "meaning": CLASSES[name],
            "color": COLORS[name],
            "share": f"{seconds / wall:.5f}",
            "tenths": f"{seconds / wall:.1%}",
            "hundredths": f"{seconds / wall:.2%}",
            "short": duration(seconds),
            "exact": exact(seconds),
        }
        for name, seconds in ledger.seconds.items()
        if seconds
    ]


def exact(seconds: float) -> str:
    """A duration; below a minute with hundredths of a second."""
    return f"{seconds:,.2f}s" if seconds < 60 else duration(seconds)


def svg_timeline(ledger: Ledger, events: Sequence[Mapping[str, Any]], size: Size) -> Markup:
    """The run from its first second to its last: its time by class in each column, and its events."""
    wall = max(ledger.wall_seconds, 1e-3)
    _, unit, unit_name = next(u for u in UNITS if wall >= u[0])
    left, width = 14, size.width - 28
    marks = marks_of(events, [micros / MICRO for micros in ledger.event_times])
    names = [(label(name), COLORS[name], False) for name, micros in ledger.micros.items() if micros]
    names += list(dict.fromkeys((mark.name, mark.color, True) for mark in marks))
    per_row = max(2, width // 150)
    legend = [
        (left + index % per_row * (width // per_row), TOP + BAR + 62 + ROW * (index // per_row), *name)
        for index, name in enumerate(names)
    ]
    return render(
        "timeline.svg",
        width=size.width,
        height=TOP + BAR + 62 + ROW * -(-len(names) // per_row),
        left=left,
        plane=width,
        top=TOP,
        floor=TOP + BAR,
        unit=unit_name,
        bars=list(_columns(ledger, left, width)),
        ticks=[
            (f"{left + tick * unit / wall * width:.1f}", f"{tick:,.6g}")
            for tick in ticks(0.0, wall / unit, about=size.ticks)
        ],
        marks=[
            (f"{left + mark.x / wall * width:.1f}", mark)
            for mark in {(m.name, int(m.x / wall * width / 4)): m for m in marks}.values()
        ],
        legend=legend,
    )


def _columns(ledger: Ledger, left: int, width: int) -> Iterator[Rectangle]:
    """The bar, a column of classes for each piece of time; equal neighbours are one."""
    number = max(1, width // COLUMN)
    columns = ledger.stretches.in_columns(number)
    first = 0
    for index in range(1, number + 1):
        if index < number and len(columns[index]) == 1 and columns[index].keys() == columns[first].keys():
            continue
        yield from _stack(columns[first], left + first * width / number, (index - first) * width / number)
        first = index


def _stack(column: Mapping[str, int], x: float, width: float) -> Iterator[Rectangle]:
    total, y = sum(column.values()) or 1, float(TOP + BAR)
    for name in CLASSES:
        if name in column:
            height = column[name] / total * BAR
            y -= height
            yield f"{x:.2f}", f"{y:.2f}", f"{width + 0.2:.2f}", f"{height:.2f}", COLORS[name]

"""Pictures of a ledger: where a run's time went, as one bar, as a table, and from its first second to its last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bigtrain.base.format import duration
from bigtrain.report.figure import ROW, Mark, Size, ticks
from bigtrain.report.page import INK, MUTED, svg, text
from bigtrain.rundir.events import Event
from bigtrain.rundir.ledger import CLASSES, Ledger, said
from bigtrain.rundir.starts import MICRO

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
    "stop": ("#475569", False),
    "save": ("#0891b2", True),
}
"""The events that charts show: their colour, and whether they are ticks on the axis, being many."""
UNITS = ((2 * 86400.0, 86400.0, "days"), (2 * 3600.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
BAR, TOP, COLUMN = 56, 58, 3


def marks_of(events: Sequence[Mapping[str, Any]], places: Sequence[float | None]) -> list[Mark]:
    """What charts show of the events, each at its place on the horizontal axis; None: nowhere."""
    marks = []
    for event, place in zip(events, places, strict=True):
        name = "restart" if event["event"] == Event.RESUME else event["event"]
        if name in EVENTS and place is not None and not (name == "stop" and event.get("exit_status") == 0):
            color, small = EVENTS[name]
            details = {
                k: v for k, v in event.items() if k in ("reason", "problems", "seconds", "from_checkpoint", "rank")
            }
            told = "".join(f", {key.replace('_', ' ')} {value}" for key, value in details.items())
            marks.append(Mark(place, name, color, f"{name} at step {event.get('step', '?')}{told}", small))
    return marks


def goodput_bar(ledger: Ledger) -> str:
    """All time as one bar, by class, in the order of a table."""
    wall = ledger.wall_seconds or 1.0
    parts = "".join(
        f'<i style="flex:{seconds / wall:.5f} 0 0;background:{COLORS[name]}" '
        f'title="{text(f"{said(name)}: {duration(seconds)}, {seconds / wall:.1%}")}"></i>'
        for name, seconds in ledger.seconds.items()
        if seconds
    )
    return f'<div class="bar">{parts}</div>'


def goodput_table(ledger: Ledger) -> str:
    """A row for each class that the run has spent time in."""
    wall = ledger.wall_seconds or 1.0
    rows = "".join(
        f'<tr><td><i class="key" style="background:{COLORS[name]}"></i>{said(name)}</td>'
        f'<td class="number">{_exact(seconds)}</td><td class="number">{seconds / wall:.2%}</td>'
        f"<td>{text(CLASSES[name])}</td></tr>"
        for name, seconds in ledger.seconds.items()
        if seconds
    )
    total = "".join(f'<td class="number">{value}</td>' for value in (_exact(wall), "100%"))
    return f'<table class="ledger">{rows}<tr class="total"><td>all</td>{total}<td></td></tr></table>'


def svg_timeline(ledger: Ledger, events: Sequence[Mapping[str, Any]], size: Size) -> str:
    """The run from its first second to its last: what it did in each column of time, and what happened to it."""
    wall = max(ledger.wall_seconds, 1e-3)
    _, unit, unit_name = next(u for u in UNITS if wall >= u[0])
    left, width = 14, size.width - 28
    title = "From the first second to the last"
    parts = [f'<text x="{left}" y="20" font-size="14" font-weight="600" fill="{INK}">{title}</text>']
    parts += _columns(ledger, left, width)
    for tick in ticks(0.0, wall / unit, about=size.ticks):
        x = left + tick * unit / wall * width
        parts.append(f'<text x="{x:.1f}" y="{TOP + BAR + 18}" text-anchor="middle">{tick:,.6g}</text>')
    parts.append(
        f'<text x="{left + width / 2}" y="{TOP + BAR + 36}" text-anchor="middle" fill="{MUTED}">{unit_name}</text>'
    )
    marks = marks_of(events, [micros / MICRO for micros in ledger.event_times])
    for mark in {(m.name, int(m.x / wall * width / 4)): m for m in marks}.values():
        x, y = left + mark.x / wall * width, TOP - 4
        shape = f"M{x:.1f} {y} l-4 -8 l8 0 z" if not mark.small else f"M{x:.1f} {y} l0 -4"
        parts.append(
            f'<path d="{shape}" fill="{mark.color}" stroke="{mark.color}"><title>{text(mark.told)}</title></path>'
        )
    names = [(said(name), COLORS[name]) for name, micros in ledger.micros.items() if micros]
    names += list(dict.fromkeys((f"▾ {mark.name}", mark.color) for mark in marks))
    per_row = max(2, width // 150)
    for index, (name, color) in enumerate(names):
        x, y = left + index % per_row * (width // per_row), TOP + BAR + 62 + ROW * (index // per_row)
        key = f'<rect x="{x}" y="{y - 9}" width="10" height="10" rx="2" fill="{color}"/>'
        if name.startswith("▾"):
            key = f'<path d="M{x + 5} {y} l-4 -8 l8 0 z" fill="{color}"/>'
        parts.append(f'{key}<text x="{x + 16}" y="{y}">{text(name.removeprefix("▾ "))}</text>')
    return svg(size.width, TOP + BAR + 62 + ROW * -(-len(names) // per_row), parts)


def _columns(ledger: Ledger, left: int, width: int) -> list[str]:
    """The bar, a column of classes for each piece of time; neighbours that are alike are one."""
    number = max(1, width // COLUMN)
    wall = max(1, ledger.stretches[-1].end if ledger.stretches else 1)
    columns: list[dict[str, int]] = [{} for _ in range(number)]
    for stretch in ledger.stretches:
        for index in range(stretch.begin * number // wall, min(number - 1, (stretch.end - 1) * number // wall) + 1):
            begin, end = max(stretch.begin, index * wall // number), min(stretch.end, (index + 1) * wall // number)
            if end > begin:
                columns[index][stretch.activity] = columns[index].get(stretch.activity, 0) + end - begin
    parts, first = [], 0
    for index in range(1, number + 1):
        if index < number and len(columns[index]) == 1 and columns[index].keys() == columns[first].keys():
            continue
        parts += _stack(columns[first], left + first * width / number, (index - first) * width / number)
        first = index
    return parts


def _stack(column: Mapping[str, int], x: float, width: float) -> list[str]:
    total, y, parts = sum(column.values()) or 1, float(TOP + BAR), []
    for name in CLASSES:
        if name in column:
            height = column[name] / total * BAR
            y -= height
            parts.append(
                f'<rect x="{x:.2f}" y="{y:.2f}" width="{width + 0.2:.2f}" height="{height:.2f}" fill="{COLORS[name]}"/>'
            )
    return parts


def _exact(seconds: float) -> str:
    return f"{seconds:,.2f}s" if seconds < 60 else duration(seconds)

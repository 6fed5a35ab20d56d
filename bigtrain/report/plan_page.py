"""The page of a plan: for each layout what its memory is for and where its time goes, and hours against GPUs.

stage 2, 4 rows, selective
████████▓▓▓▓▓▓▒▒▒░░          |      parts of a layout beside each other; the line is the memory of a device
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bigtrain.base import duration, quantity, write_asked_for
from bigtrain.estimate import PlannedLayout, PlannedRun
from bigtrain.report.page import page, render

COLORS = (
    "#1d4ed8", "#93b4f5", "#059669", "#86d1b5", "#d97706", "#f4c88a", "#7c3aed", "#c4adf0", "#dc2626", "#f2a3a3",
    "#0891b2", "#9bd6e3", "#78716c", "#d6d3d1", "#be185d", "#f0a8c8",
)  # fmt: skip
SMALLEST = 0.005
"""Of the longest bar; smaller parts are not drawn."""
ROW, BAR, LEGEND = 48, 22, 20


def write_plan_page(file: Path, planned: PlannedRun, title: str) -> None:
    """Write the page of a plan. Raises BigtrainError where the file cannot be written."""
    write_asked_for(file, plan_page(planned, title))


def plan_page(planned: PlannedRun, title: str) -> str:
    """The page of a plan.

    Args:
        planned: what `bigtrain plan` answers.
        title: of the page.
    """
    layouts = planned.best or [planned]
    names = [each.name for each in layouts]
    memory = [{kind: size / 2**30 for kind, size in each.memory.items()} for each in layouts]
    device = (planned.peak_gib + planned.left_gib) if planned.memory else None
    figures = [
        _both("Memory of the rank that needs most, GiB", _Stack(names, memory, device)),
        _both("A step, seconds", _Stack(names, [each.step_seconds for each in layouts])),
    ]
    if len(planned.front) > 1:
        front = planned.front
        names = [f"{each.gpus:,} GPUs: {quantity(each.gpu_hours)} GPU-hours" for each in front]
        hours = [{"hours": each.hours} for each in front]
        figures.append(_both("Hours of the run with the fastest layout, by the number of GPUs", _Stack(names, hours)))
    return page(
        "plan.html",
        title,
        styles=["report.css", "plan.css"],
        facts=_facts(planned),
        figures=figures,
        rows=_rows(layouts),
    )


def _facts(planned: PlannedRun) -> list[tuple[str, str]]:
    facts = [
        (f"GPUs: {planned.gpu}", f"{planned.gpus:,}"),
        ("of the device's memory", f"{planned.peak_gib:.1f} GiB"),
        ("a step", f"{planned.seconds:.2f} s"),
        ("tokens/s a GPU", quantity(planned.tokens_per_second_per_gpu)),
        ("MFU", f"{planned.mfu:.1%}"),
        (f"for {quantity(planned.tokens)} tokens", duration(planned.hours * 3600)),
        ("GPU-hours", quantity(planned.gpu_hours)),
    ]
    if planned.cost is not None:
        facts.append((f"{planned.currency}", quantity(planned.cost)))
    return facts


def _rows(layouts: Sequence[PlannedLayout]) -> list[tuple[str, ...]]:
    return [
        (
            each.name,
            f"{each.peak_gib:.1f}",
            f"{each.seconds:.2f}",
            f"{each.tokens_per_second_per_gpu:,.0f}",
            f"{each.mfu:.1%}",
            duration(each.hours * 3600),
            each.limit,
        )
        for each in layouts
    ]


@dataclass(frozen=True)
class _Stack:
    """Bars of parts."""

    names: Sequence[str]
    bars: Sequence[Mapping[str, float]]
    mark: float | None = None
    """A value that is marked by a line."""


def _both(title: str, stack: _Stack) -> dict[str, Markup]:
    """A figure for screens and one for phones."""
    return {"wide": _figure(title, stack, 1120, 4), "narrow": _figure(title, stack, 380, 2)}


def _figure(title: str, stack: _Stack, width: int, columns: int) -> Markup:
    longest = max([sum(bar.values()) for bar in stack.bars] + ([stack.mark] if stack.mark else []))
    full = width - 16 - 70
    parts = [part for part in stack.bars[0] if any(bar.get(part, 0.0) > SMALLEST * longest for bar in stack.bars)]
    colors = {part: COLORS[number % len(COLORS)] for number, part in enumerate(parts)}
    rows: list[dict[str, Any]] = []
    for number, (name, bar) in enumerate(zip(stack.names, stack.bars, strict=True)):
        at, drawn = 8.0, []
        for part in parts:
            size = full * bar.get(part, 0.0) / longest
            drawn.append(
                (f"{at:.2f}", f"{size:.2f}", colors[part], f"{part.replace('_', ' ')}: {bar.get(part, 0):.3g}")
            )
            at += size
        total = sum(bar.values())
        rows.append(
            {"y": 34 + ROW * number, "name": name, "bars": drawn, "end": f"{at + 6:.2f}", "total": f"{total:.3g}"}
        )
    below = 34 + ROW * len(rows)
    legend = [
        (
            8 + (number % columns) * (width - 16) / columns,
            below + 12 + LEGEND * (number // columns),
            part.replace("_", " "),
            color,
        )
        for number, (part, color) in enumerate(colors.items())
    ]
    return render(
        "stack.svg",
        width=width,
        height=below + 16 + LEGEND * -(-len(legend) // columns),
        title=title,
        rows=rows,
        bar=BAR,
        mark=None if stack.mark is None else f"{8 + full * stack.mark / longest:.2f}",
        below=below,
        legend=legend,
    )

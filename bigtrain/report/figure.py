"""Charts as figures: as SVG for pages and documents, as characters for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from bigtrain.base import quantity
from bigtrain.report.chart import (
    Chart,
    EventMark,
    Line,
    Point,
    Points,
    averaged,
    finite,
    log_ticks,
    points_of,
    spaced,
    span,
    thinned,
    ticks,
)
from bigtrain.report.page import render

ROW = 18
"""Height of a row of a legend."""
MOST_NAMES = 16
"""In a legend; the lines that have no room there are counted."""
DOT = 10
"""Units of the SVG for a dot of a line: of more dots only some are drawn."""


@dataclass(frozen=True)
class Size:
    """How large a chart is, and what it leaves to its axes, in the units of the SVG."""

    width: int
    height: int
    left: int
    right: int
    top: int = 34
    bottom: int = 44
    ticks: int = 5
    legend_below: bool = False
    """Else it is at the right."""

    @property
    def plane(self) -> tuple[int, int]:
        """Width and height of what lies between the axes."""
        return self.width - self.left - self.right, self.height - self.top - self.bottom


WIDE = Size(760, 320, left=64, right=190)
"""Beside another one on a screen, or alone in a document."""
BROAD = Size(1480, 400, left=64, right=190, ticks=9)
"""Over the whole width of a page."""
NARROW = Size(380, 260, left=52, right=14, ticks=4, legend_below=True)
"""On a phone."""


def svg_chart(chart: Chart, size: Size = WIDE) -> Markup:
    """A chart as one self-contained `<svg>` element; lines without points are left out.

    A line of more points than the size can show is drawn by the smallest and the largest of each column; stacked
    areas are drawn by means.
    """
    return _stacked(chart, size) if chart.stacked else _lines(chart, size)


def _lines(chart: Chart, size: Size) -> Markup:
    columns = chart.columns(size.plane[0])
    colored = [
        (replace(line, points=thinned(_on_axis(line.points, chart), columns)), color)
        for line, color in chart.drawable()
    ]
    every = [points_of(line.points) for line, _ in colored]
    measured = [points for points, (line, _) in zip(every, colored, strict=True) if not line.scattered]
    xs, ys = (
        span(np.concatenate([p[:, i] for p in of])) if of else (0.0, 1.0) for i, of in ((0, every), (1, measured))
    )
    marks = [mark for mark in chart.marks if xs[0] <= mark.x <= xs[1]]
    of_marks = list(dict.fromkeys((m.name, m.color) for m in marks))
    named = [(line.name, color) for line, color in colored if line.name]
    names = _bounded(named, MOST_NAMES - len(of_marks)) + of_marks
    plane = _Plane(size, xs, ys)
    lines = [
        {
            "color": color,
            "path": None if line.scattered or line.bare else plane.path(line.points),
            "dots": [plane.at(x, min(max(y, ys[0]), ys[1])) for x, y in _dots_of(line, columns).tolist()],
            "radius": 1.6 if line.scattered else 3.5,
        }
        for line, color in colored
    ]
    drawn = [plane.mark(mark) for mark in spaced(marks, xs, size.plane[0] / 3)]
    return render("chart.svg", **plane.frame(chart, names), marks=drawn, lines=lines, bands=[])


def _on_axis(points: Points | Sequence[Point], chart: Chart) -> Points:
    """The points as they stand along the horizontal axis."""
    array = points_of(points)
    return np.column_stack((np.log10(array[:, 0]), array[:, 1])) if chart.log_x else array


def _dots_of(line: Line, columns: int) -> Points:
    """The points of a line that are drawn as dots."""
    if line.scattered or line.bare:
        return points_of(line.points)
    return thinned(line.points, max(1, columns // DOT)) if line.dots else np.empty((0, 2))


def _short(value: float) -> str:
    """A number on a logarithmic axis: 3k, 2.5M, 1e+15, 0.002."""
    return quantity(value) if 1000 <= value < 1e13 else f"{value:.3g}"


def _bounded(names: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """The first names of a legend, and how many more there are."""
    if len(names) <= most:
        return names
    return [*names[: most - 1], (f"and {len(names) - most + 1} more", "none")]


def _stacked(chart: Chart, size: Size) -> Markup:
    columns = size.plane[0]
    lines = [(line.name, averaged(line.points, columns).tolist()) for line in chart.lines]
    floor = {x: 0.0 for x, _ in lines[0][1]}
    bands = []
    for _, points in lines:
        ceiling = {x: floor[x] + y for x, y in points}
        bands.append([*ceiling.items(), *reversed(floor.items())])
        floor = ceiling
    # One slow step, such as the first, must not press all others flat.
    most = sorted(floor.values())[int(0.98 * (len(floor) - 1))] * 1.2
    names = [(name, color) for (name, _), color in zip(lines, chart.colors, strict=True)]
    plane = _Plane(size, span(list(floor)), (0.0, most or 1.0))
    areas = [
        {"color": color, "path": plane.path([(x, min(y, most)) for x, y in band])}
        for (_, color), band in zip(names, bands, strict=True)
    ]
    return render("chart.svg", **plane.frame(chart, names), marks=[], lines=[], bands=areas)


@dataclass(frozen=True)
class _Plane:
    """What lies between the axes: it turns values into coordinates."""

    size: Size
    xs: tuple[float, float]
    ys: tuple[float, float]

    @property
    def floor(self) -> int:
        """Where the horizontal axis is."""
        return self.size.height - self.size.bottom

    def across(self, x: float) -> float:
        return self.size.left + (x - self.xs[0]) / (self.xs[1] - self.xs[0]) * self.size.plane[0]

    def up(self, y: float) -> float:
        return self.floor - (y - self.ys[0]) / (self.ys[1] - self.ys[0]) * self.size.plane[1]

    def at(self, x: float, y: float) -> tuple[str, str]:
        return f"{self.across(x):.1f}", f"{self.up(y):.1f}"

    def path(self, points: Points | Sequence[Point]) -> str:
        return " ".join(",".join(self.at(x, y)) for x, y in points_of(points).tolist())

    def frame(self, chart: Chart, names: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Title, axes and legend, for the template."""
        size = self.size
        rows = -(-len(names) // 2) if size.legend_below else 0
        return {
            "width": size.width,
            "height": size.height + ROW * rows,
            "title": chart.title,
            "x_label": chart.x_label,
            "y_label": chart.y_label,
            "left": size.left,
            "right": size.width - size.right,
            "top": size.top,
            "floor": self.floor,
            "bottom": size.height - 8,
            "x_ticks": self.x_ticks(chart.log_x),
            "y_ticks": [(round(self.up(tick), 1), f"{tick:,.6g}") for tick in ticks(*self.ys)],
            "legend": [(*self.legend_at(index), name, color) for index, (name, color) in enumerate(names)],
        }

    def x_ticks(self, log: bool) -> list[tuple[str, str]]:
        """Where the marks of the horizontal axis are, and their labels."""
        if not log:
            return [(f"{self.across(tick):.1f}", f"{tick:,.6g}") for tick in ticks(*self.xs, about=self.size.ticks)]
        return [(f"{self.across(tick):.1f}", _short(10**tick)) for tick in log_ticks(*self.xs, about=self.size.ticks)]

    def legend_at(self, index: int) -> tuple[int, int]:
        """A row for each name, or half of one where the legend is below."""
        size = self.size
        if size.legend_below:
            return 12 + index % 2 * size.width // 2, size.height + 4 + ROW * (index // 2)
        return size.width - size.right + 12, size.top + 10 + ROW * index

    def mark(self, mark: EventMark) -> dict[str, Any]:
        top = self.floor - 7 if mark.small else self.size.top
        return {"x": f"{self.across(mark.x):.1f}", "top": top, "mark": mark}


def text_chart(points: Points | Sequence[Point], *, width: int = 64, height: int = 10) -> str:
    """A chart in characters: the mean of the values of each column."""
    drawn = finite(points)
    if not len(drawn):
        return "(nothing to draw)"
    xs, ys = span(drawn[:, 0]), span(drawn[:, 1])
    column = np.minimum(width - 1, ((drawn[:, 0] - xs[0]) / (xs[1] - xs[0]) * width).astype(np.int64))
    sums, counts = np.bincount(column, drawn[:, 1], width).tolist(), np.bincount(column, minlength=width).tolist()
    levels = [
        round((total / count - ys[0]) / (ys[1] - ys[0]) * (height - 1)) if count else None
        for total, count in zip(sums, counts, strict=True)
    ]
    first, last = drawn[0, 0], drawn[-1, 0]
    rows = []
    for row in reversed(range(height)):
        label = f"{ys[0] + row / (height - 1) * (ys[1] - ys[0]):8.3f} " if row in (0, height - 1) else " " * 9
        rows.append(label + "│" + "".join("•" if level == row else " " for level in levels).rstrip())
    rows.append(" " * 9 + "└" + "─" * width)
    rows.append(" " * 10 + f"{first:<,.6g}" + f"{last:>{width - len(f'{first:,.6g}')},.6g}")
    return "\n".join(rows)

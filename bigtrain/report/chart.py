"""What a line chart shows: lines and events over the steps of a run. `figure` draws it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

Point = tuple[float, float]

COLORS = ("#93b4f5", "#1d4ed8", "#059669", "#d97706", "#7c3aed", "#dc2626")
"""Of lines that do not bring their own."""
MOST_COLUMNS = 1000
"""What a page holds of a chart for zooming in, so that the page of a long run stays small."""


@dataclass(frozen=True)
class Line:
    """One named line of a chart."""

    name: str
    points: Sequence[Point]
    dots: bool = False
    """With a dot at each point."""
    scattered: bool = False
    """Only small dots, for points that are in no order; one beyond the other lines' values is drawn at the edge."""
    color: str | None = None


@dataclass(frozen=True)
class EventMark:
    """Something that happened at one point of a chart's horizontal axis."""

    x: float
    name: str
    """The kind of event; all of a kind are one row of the legend."""
    color: str
    description: str = ""
    """What a pointer above it shows."""
    small: bool = False
    """A tick on the axis in place of a line through the plane."""


@dataclass(frozen=True)
class Chart:
    """Lines over the same axis."""

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str
    marks: Sequence[EventMark] = ()
    stacked: bool = False
    """The lines are parts of a whole, one on top of the other; all of them have values at the same places."""

    @property
    def colors(self) -> list[str]:
        """The colour of each line."""
        return [line.color or COLORS[index % len(COLORS)] for index, line in enumerate(self.lines)]

    def drawable(self) -> list[tuple[Line, str]]:
        """The finite points of each line with its colour, without the lines that have none."""
        lines = [Line(line.name, finite(line.points), line.dots, line.scattered) for line in self.lines]
        return [(line, color) for line, color in zip(lines, self.colors, strict=True) if line.points]

    def as_data(self) -> dict[str, Any]:
        """What static/charts.js draws: for the same steps the values of every line, null where a line has none.

        It is thinned: `MOST_COLUMNS` columns keep their smallest and largest values. Of several points of a line at the
        same step the last one counts.
        """
        drawable = self.drawable()
        if self.stacked:
            drawable = [(Line(line.name, averaged(line.points, MOST_COLUMNS)), color) for line, color in drawable]
        xs = sorted({x for line, _ in drawable for x, _ in thinned(line.points, MOST_COLUMNS)})
        marks = [mark for mark in self.marks if xs and xs[0] <= mark.x <= xs[-1]]
        return {
            "title": self.title,
            "x_label": self.x_label,
            "y_label": self.y_label,
            "stacked": self.stacked,
            "x": xs,
            "lines": [
                {
                    "name": line.name,
                    "color": color,
                    "dots": line.dots,
                    "scattered": line.scattered,
                    "values": [_rounded(values.get(x)) for x in xs],
                }
                for line, color in drawable
                for values in [dict(line.points)]
            ],
            "marks": [asdict(mark) for mark in spaced(marks, span(xs), MOST_COLUMNS)],
        }


def _rounded(value: float | None) -> float | None:
    """Seven significant digits: what a legend shows, and one more."""
    return None if value is None else float(f"{value:.7g}")


def finite(points: Sequence[Point]) -> list[Point]:
    """The points that can be drawn."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def span(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest value, never the same; 0 and 1 where there is none."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    flat = high - low <= 1e-9 * max(1.0, abs(low), abs(high))
    return (low - 0.5, high + 0.5) if flat else (low, high)


def thinned(points: Sequence[Point], columns: int) -> list[Point]:
    """At most two points for each of so many columns: its smallest and its largest value, in their order."""
    if len(points) <= 2 * columns:
        return list(points)
    low, high = span([x for x, _ in points])
    extremes: dict[int, list[Point]] = {}
    for point in points:
        index = min(columns - 1, int((point[0] - low) / (high - low) * columns))
        column = extremes.setdefault(index, [point, point])
        if point[1] < column[0][1]:
            column[0] = point
        if point[1] > column[1][1]:
            column[1] = point
    return [point for column in extremes.values() for point in sorted(set(column))]


def averaged(points: Sequence[Point], columns: int) -> list[Point]:
    """The means of runs of neighbours, so long that at most `columns` means are left."""
    length = -(-len(points) // columns)
    runs = [points[first : first + length] for first in range(0, len(points), length)]
    return [(run[len(run) // 2][0], sum(y for _, y in run) / len(run)) for run in runs]


def spaced(marks: Sequence[EventMark], xs: tuple[float, float], columns: float) -> list[EventMark]:
    """The last mark of each kind in each of so many columns between two values."""
    low, high = xs
    return list({(mark.name, int((mark.x - low) / (high - low) * columns)): mark for mark in marks}.values())


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two bounds."""
    rough = (high - low) / about
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]

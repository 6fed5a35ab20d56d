"""Line charts: as SVG for pages and documents, as text for a terminal. No library, so that a report opens anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bigtrain.report.page import INK, RULE, svg, text

COLORS = ("#93b4f5", "#1d4ed8", "#059669", "#d97706", "#7c3aed", "#dc2626")
ROW = 18
"""Height of a row of a legend."""


@dataclass(frozen=True)
class Size:
    """How large a chart is, and what it leaves to its axes, in the units of the picture."""

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
"""On a telephone."""


@dataclass(frozen=True)
class Line:
    """One named line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    """With a dot at each point."""
    scattered: bool = False
    """Small dots alone, for points that are in no order; one beyond the other lines' values is drawn at the edge."""
    color: str | None = None


@dataclass(frozen=True)
class Mark:
    """Something that happened at one place of a chart's horizontal axis."""

    x: float
    name: str
    """What kind of thing; all of a kind are one row of the legend."""
    color: str
    told: str = ""
    """What a pointer above it is told."""
    small: bool = False
    """A tick on the axis in place of a line through the plane."""


def svg_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    size: Size = WIDE,
) -> str:
    """A chart as one self-contained `<svg>` element; empty lines are left out.

    A line of more points than there is room for is drawn by the least and the largest of each column.
    """
    colors = [line.color or COLORS[index % len(COLORS)] for index, line in enumerate(lines)]
    drawn = [
        (Line(line.name, _thinned(_finite(line.points), size), line.dots, line.scattered), color)
        for line, color in zip(lines, colors, strict=True)
    ]
    drawn = [(line, color) for line, color in drawn if line.points]
    xs = _range([x for line, _ in drawn for x, _ in line.points])
    marks = [mark for mark in marks if xs[0] <= mark.x <= xs[1]]
    names = [(line.name, color) for line, color in drawn] + list(dict.fromkeys((m.name, m.color) for m in marks))
    ys = _range([y for line, _ in drawn for _, y in line.points if not line.scattered])
    frame = _Frame(size, xs, ys, len(names))
    parts = frame.drawn(title, x_label, y_label)
    parts += [frame.marked(mark) for mark in _apart(marks, xs, size)]
    for line, color in drawn:
        if not line.scattered:
            parts.append(
                f'<polyline points="{frame.path(line.points)}" fill="none" stroke="{color}" stroke-width="1.8"/>'
            )
        if line.dots or line.scattered:
            radius = 1.6 if line.scattered else 3.5
            parts += [
                f'<circle cx="{frame.across(x):.1f}" cy="{frame.up(min(max(y, ys[0]), ys[1])):.1f}" r="{radius}" '
                f'fill="{color}"/>'
                for x, y in line.points
            ]
    return svg(size.width, frame.height, [*parts, *frame.legend(names)])


def svg_areas(title: str, lines: Sequence[Line], *, x_label: str, y_label: str, size: Size = WIDE) -> str:
    """The same for parts of a whole, which are stacked; all of them have values at the same places."""
    columns = size.plane[0]
    if len(lines[0].points) > columns:
        lines = [Line(line.name, _averaged(line.points, columns)) for line in lines]
    floor = {x: 0.0 for x, _ in lines[0].points}
    bands = []
    for line in lines:
        ceiling = {x: floor[x] + y for x, y in line.points}
        bands.append([*ceiling.items(), *reversed(floor.items())])
        floor = ceiling
    # One slow step, such as the first, must not press all others flat.
    most = sorted(floor.values())[int(0.98 * (len(floor) - 1))] * 1.2
    names = [(line.name, COLORS[index % len(COLORS)]) for index, line in enumerate(lines)]
    frame = _Frame(size, _range(list(floor)), (0.0, most or 1.0), len(names))
    parts = frame.drawn(title, x_label, y_label)
    for (_, color), band in zip(names, bands, strict=True):
        path = frame.path([(x, min(y, most)) for x, y in band])
        parts.append(f'<polygon points="{path}" fill="{color}"/>')
    return svg(size.width, frame.height, [*parts, *frame.legend(names)])


@dataclass(frozen=True)
class _Frame:
    """The plane of a chart: from values to places."""

    size: Size
    xs: tuple[float, float]
    ys: tuple[float, float]
    names: int
    """Rows of the legend."""

    @property
    def floor(self) -> int:
        """Where the horizontal axis is."""
        return self.size.height - self.size.bottom

    @property
    def height(self) -> int:
        """Of the whole picture."""
        rows = -(-self.names // 2) if self.size.legend_below else 0
        return self.size.height + ROW * rows

    def across(self, x: float) -> float:
        return self.size.left + (x - self.xs[0]) / (self.xs[1] - self.xs[0]) * self.size.plane[0]

    def up(self, y: float) -> float:
        return self.floor - (y - self.ys[0]) / (self.ys[1] - self.ys[0]) * self.size.plane[1]

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.across(x):.1f},{self.up(y):.1f}" for x, y in points)

    def drawn(self, title: str, x_label: str, y_label: str) -> list[str]:
        size = self.size
        left, right = size.left, size.width - size.right
        parts = [f'<text x="{left}" y="20" font-size="14" font-weight="600" fill="{INK}">{text(title)}</text>']
        for tick in ticks(*self.ys):
            y = self.up(tick)
            parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{RULE}"/>')
            parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:,.6g}</text>')
        for tick in ticks(*self.xs, about=size.ticks):
            x, y = self.across(tick), self.floor + 18
            parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{tick:,.6g}</text>')
        parts.append(
            f'<text x="{(left + right) / 2}" y="{size.height - 8}" text-anchor="middle">{text(x_label)}</text>'
            f'<text transform="translate(14 {(size.top + self.floor) / 2}) rotate(-90)" text-anchor="middle">'
            f"{text(y_label)}</text>"
        )
        return parts

    def marked(self, mark: Mark) -> str:
        x, top = self.across(mark.x), self.floor - 7 if mark.small else self.size.top
        dashes = "" if mark.small else ' stroke-dasharray="3 3"'
        return (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{self.floor}" stroke="{mark.color}" stroke-width="1.5"'
            f"{dashes}><title>{text(mark.told or mark.name)}</title></line>"
        )

    def legend(self, names: Sequence[tuple[str, str]]) -> list[str]:
        """A row for each name, or half of one where they stand below."""
        parts = []
        for index, (name, color) in enumerate(names):
            if self.size.legend_below:
                x, y = 12 + index % 2 * self.size.width // 2, self.size.height + 4 + ROW * (index // 2)
            else:
                x, y = self.size.width - self.size.right + 12, self.size.top + 10 + ROW * index
            parts.append(
                f'<rect x="{x}" y="{y - 5}" width="14" height="4" fill="{color}"/>'
                f'<text x="{x + 20}" y="{y + 1}">{text(name)}</text>'
            )
        return parts


def text_chart(points: Sequence[tuple[float, float]], *, width: int = 64, height: int = 10) -> str:
    """A chart in characters: the mean of the values under each column."""
    points = _finite(points)
    if not points:
        return "(nothing to draw)"
    xs, ys = _range([x for x, _ in points]), _range([y for _, y in points])
    columns: list[list[float]] = [[] for _ in range(width)]
    for x, y in points:
        columns[min(width - 1, int((x - xs[0]) / (xs[1] - xs[0]) * width))].append(y)
    levels = [round((sum(c) / len(c) - ys[0]) / (ys[1] - ys[0]) * (height - 1)) if c else None for c in columns]
    rows = []
    for row in reversed(range(height)):
        label = f"{ys[0] + row / (height - 1) * (ys[1] - ys[0]):8.3f} " if row in (0, height - 1) else " " * 9
        rows.append(label + "│" + "".join("•" if level == row else " " for level in levels).rstrip())
    rows.append(" " * 9 + "└" + "─" * width)
    rows.append(" " * 10 + f"{points[0][0]:<,.6g}" + f"{points[-1][0]:>{width - len(f'{points[0][0]:,.6g}')},.6g}")
    return "\n".join(rows)


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    flat = high - low <= 1e-9 * max(1.0, abs(low), abs(high))
    return (low - 0.5, high + 0.5) if flat else (low, high)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two bounds."""
    rough = (high - low) / about
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _thinned(points: list[tuple[float, float]], size: Size) -> list[tuple[float, float]]:
    """No more points than can be told apart: the least and the largest of each column, in their order."""
    columns = size.plane[0]
    if len(points) <= 2 * columns:
        return points
    xs = _range([x for x, _ in points])
    extremes: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        column = extremes.setdefault(int((point[0] - xs[0]) / (xs[1] - xs[0]) * columns), [point, point])
        if point[1] < column[0][1]:
            column[0] = point
        if point[1] > column[1][1]:
            column[1] = point
    return [point for column in extremes.values() for point in sorted(set(column))]


def _averaged(points: Sequence[tuple[float, float]], columns: int) -> list[tuple[float, float]]:
    """The means of runs of points, so many that there are no more than `columns`."""
    length = -(-len(points) // columns)
    runs = [points[first : first + length] for first in range(0, len(points), length)]
    return [(run[len(run) // 2][0], sum(y for _, y in run) / len(run)) for run in runs]


def _apart(marks: Sequence[Mark], xs: tuple[float, float], size: Size) -> list[Mark]:
    """No two marks of a kind in one column of three units."""
    columns = size.plane[0] / 3
    return list({(mark.name, int((mark.x - xs[0]) / (xs[1] - xs[0]) * columns)): mark for mark in marks}.values())

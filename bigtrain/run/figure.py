"""Line charts: as SVG for pages and documents, as text for a terminal. No library, so that a report opens anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bigtrain.page import INK, RULE, svg, text

WIDTH, HEIGHT = 760, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 34, 44
COLORS = ("#93b4f5", "#1d4ed8", "#059669", "#d97706", "#7c3aed", "#dc2626")


@dataclass(frozen=True)
class Line:
    """One named line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def svg_chart(title: str, lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """A chart as one self-contained `<svg>` element; empty lines are left out."""
    lines = [Line(line.name, _finite(line.points), line.dots) for line in lines]
    lines = [line for line in lines if line.points]
    frame = _Frame(
        _range([x for line in lines for x, _ in line.points]), _range([y for line in lines for _, y in line.points])
    )
    parts = frame.drawn(title, x_label, y_label)
    for index, line in enumerate(lines):
        color = COLORS[index % len(COLORS)]
        parts.append(f'<polyline points="{frame.path(line.points)}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        if line.dots:
            parts += [
                f'<circle cx="{frame.across(x):.1f}" cy="{frame.up(y):.1f}" r="3.5" fill="{color}"/>'
                for x, y in line.points
            ]
        parts.append(_named(line.name, index, color))
    return svg(WIDTH, HEIGHT, parts)


def svg_areas(title: str, lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """The same for parts of a whole, which are stacked; all of them have values at the same places."""
    floor = {x: 0.0 for x, _ in lines[0].points}
    bands = []
    for line in lines:
        ceiling = {x: floor[x] + y for x, y in line.points}
        bands.append([*ceiling.items(), *reversed(floor.items())])
        floor = ceiling
    # One slow step, such as the first, must not press all others flat.
    most = sorted(floor.values())[int(0.98 * (len(floor) - 1))] * 1.2
    frame = _Frame(_range(list(floor)), (0.0, most or 1.0))
    parts = frame.drawn(title, x_label, y_label)
    for index, (line, band) in enumerate(zip(lines, bands, strict=True)):
        color = COLORS[index % len(COLORS)]
        path = frame.path([(x, min(y, most)) for x, y in band])
        parts += [f'<polygon points="{path}" fill="{color}"/>', _named(line.name, index, color)]
    return svg(WIDTH, HEIGHT, parts)


@dataclass(frozen=True)
class _Frame:
    """The plane of a chart: from values to places."""

    xs: tuple[float, float]
    ys: tuple[float, float]

    def across(self, x: float) -> float:
        return LEFT + (x - self.xs[0]) / (self.xs[1] - self.xs[0]) * (WIDTH - LEFT - RIGHT)

    def up(self, y: float) -> float:
        return HEIGHT - BOTTOM - (y - self.ys[0]) / (self.ys[1] - self.ys[0]) * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.across(x):.1f},{self.up(y):.1f}" for x, y in points)

    def drawn(self, title: str, x_label: str, y_label: str) -> list[str]:
        parts = [f'<text x="{LEFT}" y="20" font-size="14" font-weight="600" fill="{INK}">{text(title)}</text>']
        for tick in _ticks(*self.ys):
            y = self.up(tick)
            parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{RULE}"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:,.6g}</text>')
        for tick in _ticks(*self.xs):
            x, y = self.across(tick), HEIGHT - BOTTOM + 18
            parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{tick:,.6g}</text>')
        parts.append(
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{text(x_label)}</text>'
            f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{text(y_label)}</text>'
        )
        return parts


def _named(name: str, index: int, color: str) -> str:
    """A line of the legend."""
    y = TOP + 10 + 18 * index
    return (
        f'<rect x="{WIDTH - RIGHT + 12}" y="{y - 5}" width="14" height="4" fill="{color}"/>'
        f'<text x="{WIDTH - RIGHT + 32}" y="{y + 1}">{text(name)}</text>'
    )


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


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two bounds."""
    rough = (high - low) / about
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]

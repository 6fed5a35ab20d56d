"""What a line chart shows: lines and events over the steps of a run. `figure` draws it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Point = tuple[float, float]
Points = npt.NDArray[np.float64]
"""[n, 2]: x and y of each point."""

COLORS = ("#93b4f5", "#1d4ed8", "#059669", "#d97706", "#7c3aed", "#dc2626")
"""Of lines that do not bring their own."""
MOST_COLUMNS = 1000
"""What a page holds of a chart for zooming in, so that the page of a long run stays small."""
MOST_FULL_LINES = 8
"""Of more lines each has fewer columns, so that a chart of many sources stays small."""


@dataclass(frozen=True)
class Line:
    """One named line of a chart."""

    name: str
    """In the legend; empty: not there."""
    points: Points | Sequence[Point]
    dots: bool = False
    """With a dot at each point."""
    scattered: bool = False
    """Only small dots, for points that are in no order; one beyond the other lines' values is drawn at the edge."""
    bare: bool = False
    """Only a dot at each point, without a line between them."""
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
    log_x: bool = False
    """The horizontal axis is logarithmic; all x are above 0."""

    @property
    def colors(self) -> list[str]:
        """The colour of each line."""
        return [line.color or COLORS[index % len(COLORS)] for index, line in enumerate(self.lines)]

    def drawable(self) -> list[tuple[Line, str]]:
        """The finite points of each line with its colour, without the lines that have none."""
        lines = [replace(line, points=finite(line.points)) for line in self.lines]
        return [(line, color) for line, color in zip(lines, self.colors, strict=True) if len(line.points)]

    def columns(self, most: int) -> int:
        """The columns that each line of a figure of at most so many has."""
        return max(1, most * MOST_FULL_LINES // max(MOST_FULL_LINES, len(self.lines)))

    def as_data(self) -> dict[str, Any]:
        """What static/charts.js draws: for the same steps the values of every line, null where a line has none.

        It is thinned: `MOST_COLUMNS` columns keep their smallest and largest values. Of several points of a line at the
        same step the last one counts.
        """
        drawable = self.drawable()
        if self.stacked:
            drawable = [(Line(line.name, averaged(line.points, MOST_COLUMNS)), color) for line, color in drawable]
        columns = self.columns(MOST_COLUMNS)
        shown = [thinned(line.points, columns)[:, 0] for line, _ in drawable]
        places = np.unique(np.concatenate(shown)) if shown else np.empty(0)
        xs = [int(x) if x.is_integer() else x for x in places.tolist()]
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
                    "values": _values_at(points_of(line.points), places),
                }
                for line, color in drawable
            ],
            "marks": [asdict(mark) for mark in spaced(marks, span(xs), MOST_COLUMNS)],
        }


def _values_at(points: Points, places: npt.NDArray[np.float64]) -> list[float | None]:
    """The value at each place, with what a legend shows and one digit more; None without one. The last one counts."""
    ordered = points[np.argsort(points[:, 0], kind="stable")]
    index = ordered[:, 0].searchsorted(places, "right") - 1
    there = (index >= 0) & (ordered[index, 0] == places)
    values = ordered[index, 1].tolist()
    return [float(f"{y:.7g}") if known else None for y, known in zip(values, there.tolist(), strict=True)]


def points_of(points: Points | Sequence[Point]) -> Points:
    """The points as an array."""
    return np.asarray(points, np.float64).reshape(-1, 2)


def finite(points: Points | Sequence[Point]) -> Points:
    """The points that can be drawn; the array itself where it has no others, as there may be millions."""
    array = points_of(points)
    known = np.isfinite(array).all(axis=1)
    return array if known.all() else array[known]


def span(values: npt.NDArray[np.float64] | Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest value, never the same; 0 and 1 where there is none."""
    low, high = (float(np.min(values)), float(np.max(values))) if len(values) else (0.0, 1.0)
    flat = high - low <= 1e-9 * max(1.0, abs(low), abs(high))
    return (low - 0.5, high + 0.5) if flat else (low, high)


def thinned(points: Points | Sequence[Point], columns: int) -> Points:
    """At most two points for each of so many columns: its smallest and its largest value, in their order."""
    array = points_of(points)
    if len(array) <= 2 * columns:
        return array
    if (np.diff(array[:, 0]) < 0).any():
        array = array[np.argsort(array[:, 0], kind="stable")]
    low, high = span(array[:, 0])
    index = np.minimum(columns - 1, ((array[:, 0] - low) / (high - low) * columns).astype(np.int64))
    first = np.flatnonzero(np.diff(index, prepend=-1))
    of_column = np.repeat(np.arange(len(first)), np.diff(first, append=len(array)))
    chosen = []
    for extreme in (np.minimum, np.maximum):
        at_extreme = np.flatnonzero(array[:, 1] == extreme.reduceat(array[:, 1], first)[of_column])
        chosen.append(at_extreme[np.flatnonzero(np.diff(of_column[at_extreme], prepend=-1))])
    return array[np.unique(np.concatenate(chosen))]


def averaged(points: Points | Sequence[Point], columns: int) -> Points:
    """The means of runs of neighbours, so long that at most `columns` means are left."""
    array = points_of(points)
    length = max(1, -(-len(array) // columns))
    first = np.arange(0, len(array), length)
    lengths = np.diff(first, append=len(array))
    means = np.add.reduceat(array[:, 1], first) / lengths if len(array) else np.empty(0)
    return np.column_stack((array[first + lengths // 2, 0], means))


def spaced(marks: Sequence[EventMark], xs: tuple[float, float], columns: float) -> list[EventMark]:
    """The last mark of each kind in each of so many columns between two values."""
    low, high = xs
    return list({(mark.name, int((mark.x - low) / (high - low) * columns)): mark for mark in marks}.values())


def log_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Logarithms of round numbers between two bounds, which are logarithms to base 10 too."""
    for factors in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [
            math.log10(factor) + power
            for power in range(math.floor(low), math.ceil(high) + 1)
            for factor in factors
            if low <= math.log10(factor) + power <= high + 1e-9
        ]
        if len(found) <= about + 1:
            break
    return found[:: 1 + len(found) // (about + 2)]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two bounds."""
    rough = (high - low) / about
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]

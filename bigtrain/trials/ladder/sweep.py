"""A sweep of one setting over small runs: a grid in log2, a few seeds, and a parabola through the best points.

A grid whose best value is at its edge has found nothing yet: it grows on that side, up to a limit. What is reported is
the minimum of the parabola, the minima of each seed alone, and whether the best value had worse ones on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bigtrain.estimate import Interval, SweepPoint, SweptGrid

MOST_EXTENSIONS = 3
"""By so many steps of the grid a sweep grows on either side."""


def sweep(
    center: float,
    reach: int,
    measure: Callable[[Sequence[float]], Sequence[SweepPoint]],
    *,
    allowed: Callable[[float], bool] = lambda value: True,
) -> SweptGrid:
    """Find the best value of a setting.

    Args:
        center: of the grid, whose values are this times powers of two.
        reach: how many powers to start with on either side.
        measure: trains all seeds of some values, at once, so that an array of jobs can have them all.
        allowed: whether a value may be tried.
    """
    low, high = -reach, reach
    points: dict[int, SweepPoint] = {}
    while True:
        missing = [power for power in range(low, high + 1) if power not in points and allowed(center * 2.0**power)]
        if missing:
            points |= dict(zip(missing, measure([center * 2.0**power for power in missing]), strict=True))
        best = min(points, key=lambda power: points[power].mean)
        lower = best == min(points) and low > -reach - MOST_EXTENSIONS and allowed(center * 2.0 ** (low - 1))
        higher = best == max(points) and high < reach + MOST_EXTENSIONS and allowed(center * 2.0 ** (high + 1))
        if not (lower or higher):
            return _found([points[power] for power in sorted(points)])
        low, high = low - lower, high + higher


def _found(points: Sequence[SweepPoint]) -> SweptGrid:
    values, means = [point.value for point in points], [point.mean for point in points]
    seeds = min((len(point.losses) for point in points if not point.diverged), default=0)
    of_seeds = [
        minimum(values, [math.inf if point.diverged else point.losses[seed] for point in points])
        for seed in range(seeds)
    ]
    best = minimum(values, means)
    return SweptGrid(
        points,
        best,
        Interval(min(of_seeds, default=best), max(of_seeds, default=best)),
        inside=0 < means.index(min(means)) < len(means) - 1,
    )


def minimum(values: Sequence[float], losses: Sequence[float]) -> float:
    """The minimum of the parabola in log2 of the value through the best point and its two neighbours.

    The best point itself where it has no finite neighbour on a side.
    """
    best = min(range(len(losses)), key=lambda index: losses[index])
    if not 0 < best < len(losses) - 1 or not all(map(math.isfinite, losses[best - 1 : best + 2])):
        return values[best]
    (a, b, c), (left, middle, right) = map(math.log2, values[best - 1 : best + 2]), losses[best - 1 : best + 2]
    # Three points, not always evenly spaced, by Newton's divided differences.
    first, second = (middle - left) / (b - a), (right - middle) / (c - b)
    curvature = (second - first) / (c - a)
    if curvature <= 0:
        return values[best]
    return float(2.0 ** ((a + b) / 2 - first / (2 * curvature)))

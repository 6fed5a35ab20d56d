"""How a cost grows with the size of a job, as the exponent of a power law."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

SLACK = 0.15
"""How far a fitted exponent may exceed its bound: constants and logarithms show at small sizes."""


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """The slope of the least-squares line through log(cost) over log(size)."""
    x = [math.log(size) for size in sizes]
    y = [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def assert_grows(
    sizes: Sequence[int], cost_of: Callable[[int], float], *, at_most: float, slack: float = SLACK
) -> None:
    """Fail where the cost grows faster than size ** at_most.

    Args:
        cost_of: a count of work (bytes, calls, lines) or CPU seconds, of one size.
        slack: for CPU seconds of a busy machine give more than for counts.
    """
    costs = [cost_of(size) for size in sizes]
    found = exponent(sizes, costs)
    table = ", ".join(f"{size}: {cost:.3g}" for size, cost in zip(sizes, costs, strict=True))
    assert found <= at_most + slack, f"grows with the power {found:.2f} of the size, wanted {at_most}: {table}"


def cpu_seconds(action: Callable[[], object], repeats: int = 3) -> float:
    """CPU seconds of this process for one call, the least of several."""

    def once() -> float:
        start = time.process_time()
        action()
        return time.process_time() - start

    return max(1e-6, min(once() for _ in range(repeats)))

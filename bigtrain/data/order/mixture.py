"""The source of each draw: phases with weights, and limits on how much a source gives.

A source that reaches its limit gives nothing after that, and the others share what it would have given. The draw at
which this happens follows from the inverse of the quotas. So a limit is another phase:

    phases typed      |  web 3, code 1, books 1             |  web 1, code 2         |
    books run out     |                     |               |                        |
    intervals         |  web 3, code 1, books 1 | web 3, code 1 | web 1, code 2      |
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from bigtrain.base import STRICT
from bigtrain.data.order.quotas import Quotas

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MixturePhase:
    """From draw `start` on, sources are mixed in proportion to these integer weights. A weight of 0 gives nothing."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    start: Annotated[int, Field(ge=0, lt=2**62)]
    weights: tuple[Annotated[int, Field(ge=0, lt=2**62)], ...]


@dataclass(frozen=True)
class MixtureInterval:
    """Draws with the same weights, from `start` to the next interval."""

    start: int
    weights: tuple[int, ...]
    drawn: tuple[int, ...]
    """What each source has given before it."""

    @cached_property
    def members(self) -> I64:
        """The sources that give something."""
        return np.flatnonzero(self.weights)

    @cached_property
    def quotas(self) -> Quotas:
        """The mixture of the members."""
        return Quotas([self.weights[member] for member in self.members])

    def drawn_until(self, draw: int) -> tuple[int, ...]:
        """What each source has given before a draw of this interval."""
        drawn = list(self.drawn)
        for member, count in zip(self.members.tolist(), self.quotas.counts(draw - self.start), strict=True):
            drawn[member] += count
        return tuple(drawn)

    def runs_out(self, bounds: Sequence[int | None]) -> int | None:
        """The first draw at which a source has reached its limit; None if none ever does."""
        ends = []
        for place, member in enumerate(self.members.tolist()):
            bound = bounds[member]
            if bound is not None:
                last = np.array([bound - self.drawn[member] - 1], np.uint64)
                ends.append(self.start + int(self.quotas.invert(place, last)[0]) + 1)
        return min(ends, default=None)


class Mixture:
    """The source of every draw.

    Args:
        phases: in order, the first from draw 0.
        bounds: the number of draws that each source may give; None for no limit.
    """

    def __init__(self, phases: Sequence[MixturePhase], bounds: Sequence[int | None]) -> None:
        self.intervals: list[MixtureInterval] = []
        self.end: int | None = None
        """The number of draws, after which all sources of a phase have reached their limits. None: there is no end."""
        self._most = len(phases) + len(bounds)  # intervals: each ends with a phase or with a source
        ends: list[int | None] = [phase.start for phase in phases[1:]]
        for phase, end in zip(phases, [*ends, None], strict=True):
            if self.end is None:
                self._extend(phase, end, bounds)
        self._starts = [interval.start for interval in self.intervals]

    def _extend(self, phase: MixturePhase, end: int | None, bounds: Sequence[int | None]) -> None:
        """Add the intervals of a phase, or find that there is nothing left to draw."""
        last = self.intervals[-1] if self.intervals else None
        start, drawn = phase.start, last.drawn_until(phase.start) if last else (0,) * len(bounds)
        while end is None or start < end:
            weights = tuple(
                0 if bound is not None and given >= bound else weight
                for weight, given, bound in zip(phase.weights, drawn, bounds, strict=True)
            )
            if not any(weights):
                self.end = start
                return
            interval = MixtureInterval(start, weights, drawn)
            self.intervals.append(interval)
            if len(self.intervals) > self._most:
                raise OverflowError("limits and weights of sources that are too large to be mixed")
            runs_out = interval.runs_out(bounds)
            if runs_out is None:
                return
            start, drawn = runs_out, interval.drawn_until(runs_out)

    def locate(self, draws: I64) -> tuple[I64, I64]:
        """For draws (i64 [n], in any order): their sources, and their numbers within those."""
        sources, numbers = np.empty_like(draws), np.empty_like(draws)
        at = np.searchsorted(self._starts, draws, side="right") - 1
        for index in np.unique(at):
            interval, own = self.intervals[index], np.flatnonzero(at == index)
            places, within = interval.quotas.locate((draws[own] - interval.start).astype(np.uint64))
            sources[own] = interval.members[places]
            numbers[own] = within.astype(np.int64) + np.array(interval.drawn)[sources[own]]
        return sources, numbers

    def draws_of(self, source: int, numbers: I64) -> I64:
        """The draws (i64 [n]) that give these numbers (i64 [n]) of a source, each of which must be drawn."""
        drawn = [interval.drawn[source] for interval in self.intervals]
        at = np.searchsorted(drawn, numbers, side="right") - 1
        draws = np.empty_like(numbers)
        for index in np.unique(at):
            interval, own = self.intervals[index], np.flatnonzero(at == index)
            place = int(np.searchsorted(interval.members, source))
            within = (numbers[own] - interval.drawn[source]).astype(np.uint64)
            draws[own] = interval.quotas.invert(place, within).astype(np.int64) + interval.start
        return draws

    def drawn_before(self, draw: int) -> tuple[int, ...]:
        """How many of the first `draw` draws come from each source."""
        return self.intervals[bisect_right(self._starts, draw) - 1].drawn_until(draw)

"""Batches that are left out: the draw of each sample of a run.

The plan is an endless sequence of draws. Without skips, sample g of a run is draw g. A skip leaves out a range of
draws, and later samples move forward:

    draw      0 1 2 3 4 5 6 7 8 9 ...
    skipped         x x x
    sample    0 1 2       3 4 5 6 ...

Samples before a skip stay where they are, so a skip can be added while a run trains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


class Skips:
    """Ranges of draws that are left out. Overlapping and adjacent ranges are merged."""

    def __init__(self, ranges: Sequence[tuple[int, int]] = ()) -> None:
        merged: list[tuple[int, int]] = []
        for start, end in sorted(ranges):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        self.ranges = tuple(merged)
        self._starts = np.array([start for start, _ in merged], np.int64)
        self._ends = np.array([end for _, end in merged], np.int64)
        self._skipped = np.concatenate(([0], np.cumsum(self._ends - self._starts)))
        """[n+1]: draws left out in the first i ranges."""
        self._samples = self._starts - self._skipped[:-1]
        """[n]: the first sample after each range."""

    def with_samples(self, samples: range) -> Skips:
        """These skips, and the draws of `samples` under these skips."""
        first, last = self.draws(np.array([samples[0], samples[-1]])).tolist()
        return Skips([*self.ranges, (first, last + 1)])

    def draws(self, samples: I64) -> I64:
        """The draws (i64 [n]) of these samples."""
        return samples + self._skipped[self._samples.searchsorted(samples, "right")]

    def draw_of(self, sample: int) -> int:
        """The draw of a sample."""
        return int(self.draws(np.array([sample]))[0])

    def samples(self, draws: I64) -> I64:
        """The samples (i64 [n]) of these draws. For a draw that is left out: the next sample."""
        index = self._starts.searchsorted(draws, "right")
        left_out = self.are_left_out(draws)
        samples = draws - self._skipped[index]
        samples[left_out] = self._samples[index[left_out] - 1]
        return samples

    def sample_of(self, draw: int) -> int:
        """The sample of a draw. For a draw that is left out: the next sample."""
        return int(self.samples(np.array([draw]))[0])

    def are_left_out(self, draws: I64) -> npt.NDArray[np.bool_]:
        """Which of these draws (i64 [n]) are left out."""
        index = self._starts.searchsorted(draws, "right")
        inside = index > 0
        inside[inside] = draws[inside] < self._ends[index[inside] - 1]
        return inside

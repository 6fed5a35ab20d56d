"""The numbers of the steps of a run in columns, some hundred bytes a step, for there may be millions."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bigtrain.report.chart import Points
from bigtrain.rundir import TIMES, StepTimes, read_metrics_columns, step_of

F64 = npt.NDArray[np.float64]

NUMBERS = (
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "mfu",
    "mfu_causal",
    "step_seconds",
    "data_seconds",
    "forward_backward_seconds",
    "optimizer_seconds",
)
PARTS = ("forward/backward", "optimizer", "data", "other")


@dataclass(frozen=True)
class StepColumns:
    """Lines of metrics.jsonl."""

    steps: npt.NDArray[np.int64]
    """[n]"""
    tokens: npt.NDArray[np.int64]
    """[n], 0 where it was not recorded."""
    numbers: Mapping[str, F64]
    """[n] for each of `NUMBERS`, not a number where it was not recorded."""

    def __len__(self) -> int:
        return len(self.steps)

    def points(self, name: str) -> Points:
        """[m, 2]: a quantity by step, where it was recorded and is finite."""
        values = self.numbers[name]
        known = np.isfinite(values)
        return np.column_stack((self.steps[known].astype(np.float64), values[known]))

    def or_zero(self, name: str) -> F64:
        """[n], 0 where it was not recorded."""
        return np.nan_to_num(self.numbers[name], nan=0.0)

    def parts(self) -> dict[str, F64]:
        """The seconds of each step [n] by part; they add up to it. An old run recorded only the time for data."""
        forward_backward, optimizer = self.or_zero("forward_backward_seconds"), self.or_zero("optimizer_seconds")
        data = self.or_zero("data_seconds")
        other = np.maximum(0.0, self.or_zero("step_seconds") - forward_backward - optimizer - data)
        return dict(zip(PARTS, (forward_backward, optimizer, data, other), strict=True))


@dataclass(frozen=True)
class ReadSteps:
    """All of metrics.jsonl, read once."""

    counted: StepColumns
    """The last line of each step, in their order."""
    undone: StepColumns
    """The lines of steps that were done again later, in the order of the file."""
    last: Mapping[str, Any]
    """The whole record of the last step; empty without any."""

    @classmethod
    def read(cls, metrics: Path) -> tuple[ReadSteps, StepTimes]:
        """Those of a metrics.jsonl, and their times, for the ledger.

        Arrays that grow keep no part of a column beside the whole.
        """
        highest, last_line = -1, b""
        tokens = array("q")
        parts = {name: array("d") for name in NUMBERS}

        def times() -> Iterator[StepTimes]:
            nonlocal highest, last_line
            for some in read_metrics_columns(metrics, (*TIMES, *NUMBERS)):
                tokens.frombytes(some.counts["tokens"].tobytes())
                for name, column in parts.items():
                    column.frombytes(some.numbers[name].tobytes())
                if some.highest >= highest:
                    highest, last_line = some.highest, some.last_line
                yield StepTimes.of_columns(some)

        joined = StepTimes.joined(times())
        _, from_end = np.unique(joined.steps[::-1], return_index=True)
        counted = len(joined) - 1 - from_end
        undone = np.setdiff1d(np.arange(len(joined)), counted, assume_unique=True)
        of_counted: dict[str, F64] = {}
        of_undone: dict[str, F64] = {}
        for name in NUMBERS:
            values = np.frombuffer(parts.pop(name), np.float64)
            of_counted[name], of_undone[name] = values[counted], values[undone]
        steps, of_tokens = joined.steps, np.frombuffer(tokens, np.int64)
        read = cls(
            StepColumns(steps[counted], of_tokens[counted], of_counted),
            StepColumns(steps[undone], of_tokens[undone], of_undone),
            step_of(last_line) or {},
        )
        return read, joined

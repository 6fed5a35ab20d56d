"""The numbers of the steps of a run in columns, some hundred bytes a step, for there may be millions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigtrain.report.chart import Points
from bigtrain.rundir import StepTimes, batches

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

    def at(self, chosen: npt.NDArray[np.intp]) -> StepColumns:
        """Some of the lines."""
        numbers = {name: values[chosen] for name, values in self.numbers.items()}
        return StepColumns(self.steps[chosen], self.tokens[chosen], numbers)

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

    times: StepTimes
    """For the ledger."""
    counted: StepColumns
    """The last line of each step, in their order."""
    undone: StepColumns
    """The lines of steps that were done again later, in the order of the file."""
    last: Mapping[str, Any]
    """The whole record of the last step; empty without any."""

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> ReadSteps:
        """Those of the lines of metrics.jsonl, in order."""
        last: Mapping[str, Any] = {}
        times: list[StepTimes] = []
        tokens = [np.empty(0, np.int64)]
        columns = {name: [np.empty(0)] for name in NUMBERS}
        nan = float("nan")
        for some in batches(records):
            times.append(StepTimes.of(some))
            tokens.append(np.array([record.get("tokens", 0) for record in some], np.int64))
            for name, parts in columns.items():
                parts.append(np.array([record.get(name, nan) for record in some], np.float64))
            last = max(reversed([last, *some] if last else some), key=lambda record: record["step"])
        joined = StepTimes.joined(times)
        numbers = {name: np.concatenate(parts) for name, parts in columns.items()}
        every, steps = StepColumns(joined.steps, np.concatenate(tokens), numbers), joined.steps
        _, from_end = np.unique(steps[::-1], return_index=True)
        counted = len(steps) - 1 - from_end
        undone = np.setdiff1d(np.arange(len(steps)), counted, assume_unique=True)
        return cls(joined, every.at(counted), every.at(undone), last)

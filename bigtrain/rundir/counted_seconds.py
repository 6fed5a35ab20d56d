"""The seconds of training that count, as a running sum."""

from __future__ import annotations

from pathlib import Path

from bigtrain.rundir.records import metrics_of_step, read_metrics
from bigtrain.rundir.starts import seconds_of


class CountedSeconds:
    """Adds up the training that counts, step by step, over all starts and rewinds.

    Every line of metrics.jsonl has the sum, so that the last line alone gives the goodput of a run of any length.
    """

    KEY = "counted_seconds"

    def __init__(self, metrics: Path) -> None:
        self._metrics, self._step, self._seconds = metrics, -1, 0.0

    def after(self, step: int, training_seconds: float) -> float:
        """The sum up to and with this step. Where the run went back, it goes on from the line of the step before."""
        if step != self._step + 1:
            self._seconds = self._up_to(step - 1)
        self._step, self._seconds = step, self._seconds + training_seconds
        return self._seconds

    def _up_to(self, step: int) -> float:
        record = metrics_of_step(self._metrics, step)
        if record is not None and self.KEY in record:
            return seconds_of(record, self.KEY)
        # None, or of a version that did not write it.
        lines = read_metrics(self._metrics)
        return sum(seconds_of(r, "step_seconds") - seconds_of(r, "data_seconds") for r in lines if r["step"] <= step)

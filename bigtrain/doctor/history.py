"""What earlier preflights of a run have measured, which is what the next one expects.

RUN/doctor.json holds the last report, and the last values of each quantity under a name that stays the same: a device
of a host, a folder, a number of ranks. "Slow since Tuesday" is then a finding.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from bigtrain.base import STRICT, BigtrainError, as_record, read_json, write_atomically

FILE = "doctor.json"
KEPT = 10
"""Values kept of each quantity. The expected value is their median, so that one bad day does not move it."""


class _Report(TypedDict):
    """RUN/doctor.json."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    last: dict[str, Any]
    past: dict[str, list[Annotated[float, Field(gt=-1e300, lt=1e300)]]]


class MeasurementHistory:
    """Measured values by quantity, oldest first."""

    def __init__(self, past: dict[str, list[float]] | None = None) -> None:
        self.past = past or {}

    @classmethod
    def read(cls, run_dir: Path) -> MeasurementHistory:
        """Read a run's history; it is empty where there is none, or it cannot be read."""
        try:
            record = as_record(_Report, read_json(run_dir / FILE), run_dir / FILE)
        except (OSError, BigtrainError):
            return cls()
        return cls({name: values[-KEPT:] for name, values in record["past"].items()})

    def expected(self, quantity: str) -> float | None:
        """Return the median of the last values of a quantity; None where there are none."""
        values = self.past.get(quantity)
        return statistics.median(values) if values else None

    def add(self, quantity: str, value: float) -> None:
        """Add a value, in four significant digits."""
        self.past[quantity] = [*self.past.get(quantity, []), float(f"{value:.4g}")][-KEPT:]

    def write(self, run_dir: Path, report: dict[str, Any]) -> None:
        """Write RUN/doctor.json atomically. Raises OSError."""
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / FILE, json.dumps({"last": report, "past": self.past}, indent=1), follow_link=False)

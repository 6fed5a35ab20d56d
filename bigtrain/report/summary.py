"""The numbers of a run: what `bigtrain report` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bigtrain.base import duration, quantity
from bigtrain.report.chart import Points
from bigtrain.report.figure import text_chart
from bigtrain.rundir import Event, Ledger, LedgerSummary


def baselines_of(source: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Names and perplexities of the baselines that were evaluated too."""
    suffix = " perplexity"
    found = {f"{key.removesuffix(suffix)} model": value for key, value in source.items() if key.endswith(suffix)}
    others = source.get("run perplexities")
    found |= others if isinstance(others, dict) else {}
    return [(name, value) for name, value in found.items() if isinstance(value, float)]


def of_what(mfu_of: str | None) -> str:
    """What counts as 100% of the MFU, with a space at the end; empty where the run did not record it."""
    return {"datasheet": "of the datasheet's peak ", "measured": "of the measured matmul peak "}.get(mfu_of or "", "")


@dataclass(frozen=True)
class Expectation:
    """What the planner expected of the last start, and what was measured."""

    what: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """By how much the prediction is too high, as a share of what was measured."""
        return self.predicted / self.measured - 1

    def __str__(self) -> str:
        return f"{self.what} {self.measured:,.4g}, predicted {self.predicted:,.4g} ({self.error:+.0%})"


def expectations(events: Sequence[Mapping[str, Any]], steps: Points, last: Mapping[str, Any]) -> list[Expectation]:
    """What the last forecast said beside what was measured since; empty without one.

    Args:
        events: of the run.
        steps: [n, 2]: the seconds of each step that counts.
        last: the record of the last step.
    """
    forecast = next((event for event in reversed(events) if event["event"] == Event.FORECAST), None)
    if forecast is None or not len(since := steps[steps[:, 0] > forecast["step"], 1]):
        return []
    found = [Expectation("seconds a step", sum(forecast["step_seconds"].values()), float(np.median(since)))]
    if (peak := last.get("peak_memory_bytes")) is not None:
        found.append(Expectation("GiB allocated", forecast["allocated_bytes"] / 2**30, peak / 2**30))
    return found


@dataclass(frozen=True)
class Summary:
    """A run in a few numbers."""

    run: str
    step: int
    total_steps: int
    tokens: int
    """Labelled tokens of all steps."""
    loss: float
    """Of the last step, in nats."""
    validation: list[dict[str, Any]]
    """For each source what `bigtrain eval` found at the last step, else what training last recorded."""
    tokens_per_second: float
    """Median over the steps."""
    mfu: float
    """Median over the steps."""
    mfu_causal: float | None
    """Null where the run is of a version that did not count it."""
    mfu_of: str | None
    """What counts as 100%: `datasheet` or `measured`."""
    parts: dict[str, float]
    """Seconds of all steps by part, where the run has recorded them."""
    training_seconds: float
    starts: int
    report: str | None
    """The file of the page; null where it could not be written."""
    goodput: LedgerSummary
    expectations: list[Expectation] = field(default_factory=list)
    """Predicted by the planner and measured; empty where the device's datasheet is not known."""


@dataclass(frozen=True)
class RunSummary:
    """A run in a few numbers, with the rest of what a terminal shows."""

    numbers: Summary
    ledger: Ledger
    loss_curve: Points

    def __str__(self) -> str:
        run = self.numbers
        lines = [
            f"{run.run}: step {run.step} of {run.total_steps}, {quantity(run.tokens)} tokens in "
            f"{duration(run.training_seconds)} of training over {run.starts} start(s)",
            f"loss {run.loss:.4f}, {quantity(run.tokens_per_second)} tokens/s, MFU {run.mfu:.1%} "
            f"{of_what(run.mfu_of)}(medians)",
            _shares(run.parts),
            str(self.ledger),
            *([f"planner: {'; '.join(map(str, run.expectations))}"] if run.expectations else []),
            *(
                f"validation of {source['source']}: loss {source['loss']:.4f}, perplexity {source['perplexity']:.2f}"
                + "".join(f", {name} {perplexity:.2f}" for name, perplexity in baselines_of(source))
                for source in run.validation
            ),
            "",
            "training loss",
            text_chart(self.loss_curve),
            "",
            f"the page with all curves: {run.report or 'not written'}",
        ]
        return "\n".join(lines)


def _shares(parts: dict[str, float]) -> str:
    total = sum(parts.values()) or 1.0
    return "time of the steps: " + ", ".join(f"{part} {seconds / total:.0%}" for part, seconds in parts.items())

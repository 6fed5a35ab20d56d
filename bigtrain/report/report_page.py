"""The page of a report: the numbers of a run, its time, its curves, texts, data and events."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from markupsafe import Markup

from bigtrain.base import duration, quantity
from bigtrain.data import Funnel
from bigtrain.report.chart import Chart, EventMark, Line, Points
from bigtrain.report.figure import BROAD, NARROW, WIDE, Size, svg_chart
from bigtrain.report.funnel_page import funnel_parts
from bigtrain.report.page import page
from bigtrain.report.step_columns import ReadSteps
from bigtrain.report.summary import Summary, baselines_of, of_what
from bigtrain.report.timeline import exact, goodput_parts, marks_of, svg_timeline
from bigtrain.rundir import Event, Ledger

SMOOTHING = 0.9
NAMED = ("event", "step", "time", "start", "uptime", "samples")
MOST_EVENTS = 500
LONGEST_DETAILS = 10_000
"""Characters."""
UNDONE = "#f59e9e"
UPLOT = "vendor/uplot-1.6.32"
"""The library that draws the charts: https://github.com/leeoniya/uPlot, from `npm pack uplot`."""


@dataclass(frozen=True)
class RunRecords:
    """All that the page of a run shows."""

    summary: Summary
    ledger: Ledger
    steps: ReadSteps
    """Those that count, and those that were done again later."""
    events: list[dict[str, Any]]
    samples: list[tuple[int, list[dict[str, str]]]]
    """Samples by step."""
    funnels: Mapping[str, Funnel]
    config: str

    @property
    def loss_lines(self) -> list[Line]:
        """The loss of training, of held-out documents, and of steps that were undone. Made again for each chart: kept,
        it would be 32 MB of a million steps beside all others."""
        held_out: dict[str, list[tuple[float, float]]] = {}
        for event in self.events:
            if event["event"] == Event.EVALUATE:
                for source in event["validation"]:
                    held_out.setdefault(source["source"], []).append((event["step"], source["loss"]))
        loss = self.steps.counted.points("loss")
        return [
            Line("training", loss),
            Line("training, smoothed", _smooth(loss)),
            *(Line(f"held-out {name}", points, dots=True) for name, points in held_out.items()),
            Line("undone", self.steps.undone.points("loss"), scattered=True, color=UNDONE),
        ]

    @cached_property
    def marks(self) -> list[EventMark]:
        """The events on the axis of the steps."""
        places = [float(step) if isinstance(step := event.get("step"), int) else None for event in self.events]
        return marks_of(self.events, places)


def report_page(report: RunRecords) -> str:
    """The whole page."""
    summary, ledger = report.summary, report.ledger
    return page(
        "report.html",
        summary.run,
        styles=["funnel.css", "report.css", f"{UPLOT}/uPlot.min.css"],
        scripts=[f"{UPLOT}/uPlot.iife.min.js", "charts.js"],
        facts=_facts(report),
        goodput_share=f"{ledger.goodput:.1%}",
        wall_time=duration(ledger.wall_seconds),
        wall_exact=exact(ledger.wall_seconds or 1.0),
        classes=goodput_parts(ledger),
        timeline=_both(lambda size: svg_timeline(ledger, report.events, size), BROAD),
        charts=_charts(report),
        samples=[(f"{step:,}", texts) for step, texts in reversed(report.samples)],
        funnels=funnel_parts(report.funnels) if report.funnels else None,
        events=[(event["event"], event.get("step", ""), _details(event)) for event in report.events[-MOST_EVENTS:]],
        earlier_events=len(report.events) - MOST_EVENTS,
        config=report.config,
    )


def _details(event: Mapping[str, Any]) -> str:
    """The fields of an event in one line, cut short where it is long."""
    line = ", ".join(f"{key} {value}" for key, value in event.items() if key not in NAMED)
    return line if len(line) <= LONGEST_DETAILS else line[:LONGEST_DETAILS] + " ..."


def loss_chart(report: RunRecords) -> Chart:
    """The loss, of training and held-out documents, with the events of the run."""
    return Chart("Loss", report.loss_lines, x_label="step", y_label="nats a token", marks=report.marks)


def _charts(report: RunRecords) -> list[dict[str, Any]]:
    """The loss over the whole width, the others side by side; as SVG, and as data for the page's script."""
    # `map` lets go of a chart before it asks for the next.
    return [_drawn(loss_chart(report), BROAD), *map(partial(_drawn, wide=WIDE), _other_charts(report))]


def _drawn(chart: Chart, wide: Size) -> dict[str, Any]:
    return {**_both(partial(svg_chart, chart), wide), "data": chart.as_data()}


def _other_charts(report: RunRecords) -> Iterator[Chart]:
    """One after the other, as the points of each take tens of megabytes."""
    steps, marks = report.steps.counted, [mark for mark in report.marks if not mark.small]

    def chart(title: str, y_label: str, *lines: Line) -> Chart:
        return Chart(title, lines, x_label="step", y_label=y_label, marks=marks)

    undone = Line("undone", report.steps.undone.points("grad_norm"), scattered=True, color=UNDONE)
    yield chart("Learning rate", "rate", Line("rate", steps.points("learning_rate")))
    yield chart("Gradient norm", "L2 norm", Line("before clipping", steps.points("grad_norm")), undone)
    yield chart("Throughput", "tokens/s", Line("tokens/s", steps.points("tokens_per_second")))
    yield chart(
        f"MFU {of_what(report.summary.mfu_of)}".strip(),
        "share of peak",
        Line("MFU", steps.points("mfu")),
        Line("causal-exact", steps.points("mfu_causal")),
    )
    parts = steps.parts()
    stacked = [Line(name, np.column_stack((steps.steps, parts.pop(name)))) for name in list(parts)]
    yield Chart("Where the time of a step goes", stacked, x_label="step", y_label="seconds", stacked=True)


def _both(draw: Callable[[Size], Markup], wide: Size) -> dict[str, Markup]:
    """A figure for screens and one for phones; the page shows the one that fits."""
    return {"wide": draw(wide), "narrow": draw(NARROW)}


def _facts(report: RunRecords) -> list[tuple[str, str]]:
    summary, ledger = report.summary, report.ledger
    lost = f", {ledger.steps_recomputed:,} step(s) done in vain" if ledger.steps_recomputed else ""
    return [
        ("step", f"{summary.step:,} of {summary.total_steps:,}"),
        ("tokens", f"{summary.tokens:,}"),
        ("training loss", f"{summary.loss:.4f}"),
        *(
            (f"perplexity, {name}", f"{perplexity:.2f}")
            for source in summary.validation
            for name, perplexity in [
                (source["source"], source["perplexity"]),
                *((f"{source['source']}, {name}", perplexity) for name, perplexity in baselines_of(source)),
            ]
        ),
        ("tokens/s", quantity(summary.tokens_per_second)),
        (f"MFU {of_what(summary.mfu_of)}", f"{summary.mfu:.1%}"),
        *([("MFU, causal-exact", f"{summary.mfu_causal:.1%}")] if summary.mfu_causal is not None else []),
        ("goodput", f"{ledger.goodput:.1%}"),
        (f"start(s), {ledger.crashes} crash(es){lost}", str(summary.starts)),
        *((f"{each.what}, {each.predicted:,.4g} predicted", f"{each.measured:,.4g}") for each in summary.expectations),
        ("training time", duration(summary.training_seconds)),
    ]


def _smooth(points: Points) -> Points:
    """Exponential mean with the bias of its start removed (Kingma and Ba, 2015, section 3)."""
    smoothed, mean, weight = array("d"), 0.0, 0.0
    for y in array("d", points[:, 1].tobytes()):
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * y, SMOOTHING * weight + (1 - SMOOTHING)
        smoothed.append(mean / weight)
    return np.column_stack((points[:, 0], smoothed))

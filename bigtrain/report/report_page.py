"""The page of a report: what a run has come to, where its time went, its curves, texts, data and events."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bigtrain.base.format import duration, quantity
from bigtrain.data import Funnel
from bigtrain.report.figure import BROAD, NARROW, WIDE, Line, Mark, Size, svg_areas, svg_chart
from bigtrain.report.funnel_page import FUNNEL_STYLE, funnel_body
from bigtrain.report.page import MUTED, RULE, cards, page, table, text
from bigtrain.report.summary import Summary, baselines_of, of_what
from bigtrain.report.timeline import goodput_bar, goodput_table, marks_of, svg_timeline
from bigtrain.rundir.events import Event

SMOOTHING = 0.9
NAMED = ("event", "step", "time", "start", "uptime", "samples")
MOST_EVENTS = 500
UNDONE = "#f59e9e"
STYLE = f"""
h2 {{ font-size: 1.15rem; margin: 2rem 0 .6rem }}
.curves {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); gap: 1rem;
          margin: 1rem 0 }}
.curves figure {{ margin: 0 }} .narrow {{ display: none }}
.bar {{ display: flex; height: 28px; border-radius: 6px; overflow: hidden; margin: .8rem 0 }}
.bar i {{ min-width: 1px }}
.key {{ display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: .5rem }}
.ledger td {{ border-top: 1px solid {RULE}; padding: .25rem 1rem .25rem 0 }}
.ledger .total td {{ font-weight: 600 }} .ledger td:last-child {{ color: {MUTED} }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
.ledger td:first-child {{ white-space: nowrap }}
details {{ overflow-x: auto }} .wide-table {{ overflow-x: auto }}
.sample {{ border-left: 3px solid {RULE}; padding: .2rem 0 .2rem .8rem; margin: .6rem 0; white-space: pre-wrap;
          overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace }}
.sample b {{ font-weight: 600 }} .sample span {{ color: #1d4ed8 }}
.events td {{ border-top: 1px solid {RULE}; overflow-wrap: anywhere }}
.events td:first-child {{ white-space: nowrap; font-weight: 500 }}
@media (max-width: 700px) {{
  body {{ margin: 1rem auto; padding: 0 .6rem }} h1 {{ font-size: 1.3rem; overflow-wrap: anywhere }}
  .wide {{ display: none }} .narrow {{ display: block }} figure {{ padding: .4rem }}
  .cards div {{ padding: .45rem .7rem; flex: 1 1 40% }} .cards b {{ font-size: 1.05rem }}
  .ledger td:last-child {{ display: none }}
}}
"""


@dataclass(frozen=True)
class Report:
    """All that a page shows."""

    summary: Summary
    metrics: list[dict[str, Any]]
    """A record a step, the one that counts."""
    undone: list[dict[str, Any]]
    """The records of steps that were done again later."""
    events: list[dict[str, Any]]
    samples: list[tuple[int, list[dict[str, str]]]]
    """Samples by step."""
    funnels: Mapping[str, Funnel]
    config: str

    @cached_property
    def loss_lines(self) -> list[Line]:
        """The loss of training, of what is held out, and of what was done in vain."""
        held_out: dict[str, list[tuple[float, float]]] = {}
        for event in self.events:
            if event["event"] == Event.EVALUATE:
                for source in event["validation"]:
                    held_out.setdefault(source["source"], []).append((event["step"], source["loss"]))
        loss = column(self.metrics, "loss")
        return [
            Line("training", loss),
            Line("training, smoothed", _smooth(loss)),
            *(Line(f"held-out {name}", points, dots=True) for name, points in held_out.items()),
            Line("undone", column(self.undone, "loss"), scattered=True, color=UNDONE),
        ]

    @cached_property
    def marks(self) -> list[Mark]:
        """The events on the axis of the steps."""
        places = [float(step) if isinstance(step := event.get("step"), int) else None for event in self.events]
        return marks_of(self.events, places)


def report_page(report: Report) -> str:
    """The whole page."""
    summary, ledger = report.summary, report.summary.goodput
    happened = table(
        (event["event"], event.get("step", ""), ", ".join(f"{k} {v}" for k, v in event.items() if k not in NAMED))
        for event in report.events[-MOST_EVENTS:]
    )
    left_out = len(report.events) - MOST_EVENTS
    earlier = f"<p>The last {MOST_EVENTS}; {left_out:,} earlier ones are in events.jsonl.</p>" if left_out > 0 else ""
    body = f"""{cards(_facts(report))}
<h2>Goodput: {ledger.goodput:.1%} of {duration(ledger.wall_seconds)}</h2>
<figure>{goodput_bar(ledger)}{goodput_table(ledger)}</figure>
<div class="curves"><figure style="grid-column: 1 / -1">{
        _both(lambda size: svg_timeline(ledger, report.events, size), BROAD)
    }</figure></div>
<h2>Curves</h2>
<div class="curves"><figure style="grid-column: 1 / -1">{_both(lambda size: loss_chart(report, size), BROAD)}</figure>
{"".join(f"<figure>{_both(chart)}</figure>" for chart in _curves(report))}</div>
{_samples(report)}{_funnel(report)}
<h2>Records</h2>
<details class="events"><summary>Events</summary>{earlier}{happened}</details>
<details><summary>Settings</summary><pre>{text(report.config)}</pre></details>"""
    return page(summary.run, body, style=FUNNEL_STYLE + STYLE)


def loss_chart(report: Report, size: Size = WIDE) -> str:
    """The loss, of training and held-out documents, with what happened on the way."""
    return svg_chart("Loss", report.loss_lines, x_label="step", y_label="nats a token", marks=report.marks, size=size)


def _curves(report: Report) -> list[Callable[[Size], str]]:
    metrics, marks = report.metrics, [mark for mark in report.marks if not mark.small]

    def chart(title: str, y_label: str, *lines: Line) -> Callable[[Size], str]:
        return lambda size: svg_chart(title, lines, x_label="step", y_label=y_label, marks=marks, size=size)

    undone = Line("undone", column(report.undone, "grad_norm"), scattered=True, color=UNDONE)
    parts = [(record["step"], _parts_of(record)) for record in metrics]
    stacked = [Line(name, [(step, seconds[name]) for step, seconds in parts]) for name in PARTS]
    utilisation = f"MFU {of_what(report.summary.mfu_of)}".strip()
    return [
        chart("Learning rate", "rate", Line("rate", column(metrics, "learning_rate"))),
        chart("Gradient norm", "L2 norm", Line("before clipping", column(metrics, "grad_norm")), undone),
        chart("Throughput", "tokens/s", Line("tokens/s", column(metrics, "tokens_per_second"))),
        chart(
            utilisation,
            "share of peak",
            Line("MFU", column(metrics, "mfu")),
            Line("causal-exact", column(metrics, "mfu_causal")),
        ),
        lambda size: svg_areas("Where the time of a step goes", stacked, x_label="step", y_label="seconds", size=size),
    ]


def column(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """A quantity by step, where it was recorded."""
    return [(record["step"], record[name]) for record in records if name in record]


def _both(draw: Callable[[Size], str], wide: Size = WIDE) -> str:
    """A picture for screens and one for telephones; the page shows the one that fits."""
    return f'<div class="wide">{draw(wide)}</div><div class="narrow">{draw(NARROW)}</div>'


def _facts(report: Report) -> list[tuple[str, str]]:
    summary, ledger = report.summary, report.summary.goodput
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
        ("training time", duration(summary.training_seconds)),
    ]


def _samples(report: Report) -> str:
    """The newest samples open, the ones before folded."""
    if not report.samples:
        return ""
    blocks: list[str] = []
    for step, samples in reversed(report.samples):
        texts = "".join(
            f'<div class="sample"><b>{text(sample["prompt"])}</b><span>{text(sample["completion"])}</span></div>'
            for sample in samples
        )
        is_open = "" if blocks else ' open="open"'
        blocks.append(f"<details{is_open}><summary>Step {step:,}</summary>{texts}</details>")
    return f"<h2>What it writes after the beginnings of held-out documents</h2>{''.join(blocks)}"


def _funnel(report: Report) -> str:
    if not report.funnels:
        return ""
    summary = f"<summary>What became of the documents of {len(report.funnels)} source(s)</summary>"
    return f"<h2>Its data</h2><details>{summary}{funnel_body(report.funnels)}</details>"


PARTS = ("forward/backward", "optimizer", "data", "other")


def parts_of_steps(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The seconds of all steps by part."""
    sums = dict.fromkeys(PARTS, 0.0)
    for record in metrics:
        for part, seconds in _parts_of(record).items():
            sums[part] += seconds
    return sums


def _parts_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The seconds of one step by part; they add up to it. A run of long ago has only told data from the rest."""
    forward_backward, optimizer = record.get("forward_backward_seconds", 0.0), record.get("optimizer_seconds", 0.0)
    data = record["data_seconds"]
    other = max(0.0, record["step_seconds"] - forward_backward - optimizer - data)
    return {"forward/backward": forward_backward, "optimizer": optimizer, "data": data, "other": other}


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Exponential mean with the bias of its start removed (Kingma and Ba, 2015, section 3)."""
    smoothed, mean, weight = [], 0.0, 0.0
    for x, y in points:
        if math.isfinite(y):
            mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * y, SMOOTHING * weight + (1 - SMOOTHING)
            smoothed.append((x, mean / weight))
    return smoothed

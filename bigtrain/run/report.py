"""The report of a run: one HTML page that opens from disk, and a summary for the terminal."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigtrain.config import BigtrainError
from bigtrain.page import cards, page, table, text
from bigtrain.run.directory import RunDirectory
from bigtrain.run.figure import Line, svg_areas, svg_chart, text_chart
from bigtrain.run.records import read_json_lines, read_metrics
from bigtrain.wording import duration, quantity

SMOOTHING = 0.9
NAMED = ("event", "step", "time")
STYLE = """
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(520px, 1fr)); gap: 1rem; margin: 1rem 0 }
"""


@dataclass(frozen=True)
class Summary:
    """A run in a few numbers."""

    run: str
    step: int
    total_steps: int
    tokens: int
    loss: float
    validation: list[dict[str, Any]]
    tokens_per_second: float
    mfu: float
    mfu_causal: float | None
    """None where the run is from before there was one."""
    mfu_of: str | None
    """What counts as 100%: `datasheet` or `measured`."""
    parts: dict[str, float]
    """Seconds of all steps by part, where the run has recorded them."""
    training_seconds: float
    starts: int
    report: str
    loss_curve: list[tuple[float, float]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the curve itself is in metrics.jsonl."""
        document = asdict(self)
        del document["loss_curve"]
        return document

    def __str__(self) -> str:
        lines = [
            f"{self.run}: step {self.step} of {self.total_steps}, {quantity(self.tokens)} tokens in "
            f"{duration(self.training_seconds)} of training over {self.starts} start(s)",
            f"loss {self.loss:.4f}, {quantity(self.tokens_per_second)} tokens/s, MFU {self.mfu:.1%} "
            f"{_of_what(self.mfu_of)}(medians)",
            _said(self.parts),
            *(
                f"validation of {source['source']}: loss {source['loss']:.4f}, perplexity {source['perplexity']:.2f}"
                + "".join(f", {name} model {perplexity:.2f}" for name, perplexity in _yardsticks(source))
                for source in self.validation
            ),
            "",
            "training loss",
            text_chart(self.loss_curve),
            "",
            f"the page with all curves: {self.report}",
        ]
        return "\n".join(lines)


def write_report(run: Path) -> Summary:
    """Write RUN/report.html and RUN/loss.svg from the run's records.

    Raises:
        BigtrainError: `run` is no run directory, or has not done a step yet.
    """
    directory = RunDirectory.of_existing_run(run)
    settings = directory.settings()
    metrics, events = read_metrics(directory.metrics), list(read_json_lines(directory.events))
    if not metrics:
        raise BigtrainError(
            f"{run} has nothing to report yet",
            found="no step in metrics.jsonl",
            fix="train first: bigtrain train CONFIG",
        )
    validations = [event for event in events if event["event"] == "evaluate"]
    curves = _curves(metrics, validations)
    report, picture = directory.root / "report.html", directory.root / "loss.svg"
    summary = Summary(
        run=str(run),
        step=metrics[-1]["step"],
        total_steps=settings.total_steps,
        tokens=sum(record["tokens"] for record in metrics),
        loss=metrics[-1]["loss"],
        validation=_newest_validation(directory, metrics[-1]["step"], validations),
        tokens_per_second=_median([record["tokens_per_second"] for record in metrics]),
        mfu=_median([record["mfu"] for record in metrics]),
        mfu_causal=_median(causal) if (causal := [r["mfu_causal"] for r in metrics if "mfu_causal" in r]) else None,
        mfu_of=metrics[-1].get("mfu_of"),
        parts=_parts(metrics),
        training_seconds=sum(record["step_seconds"] for record in metrics),
        starts=sum(event["event"] in ("start", "resume") for event in events),
        report=str(report),
        loss_curve=[(record["step"], record["loss"]) for record in metrics],
    )
    picture.write_text(curves[0])
    report.write_text(_page(summary, curves, events, directory.config.read_text()))
    return summary


def _newest_validation(directory: RunDirectory, step: int, along_the_way: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `bigtrain eval` found at the newest step, else what training last recorded."""
    evaluation = json.loads(directory.evaluation.read_text()) if directory.evaluation.is_file() else {}
    if evaluation.get("step") == step:
        validation: list[dict[str, Any]] = evaluation["validation"]
        return validation
    return along_the_way[-1]["validation"] if along_the_way else []


def _yardsticks(source: dict[str, Any]) -> list[tuple[str, float]]:
    """Names and perplexities of the simple models that were evaluated beside ours."""
    return [(key.removesuffix(" perplexity"), source[key]) for key in source if key.endswith(" perplexity")]


def _curves(metrics: list[dict[str, Any]], validations: list[dict[str, Any]]) -> list[str]:
    def column(name: str) -> list[tuple[float, float]]:
        return [(record["step"], record[name]) for record in metrics if name in record]

    held_out: dict[str, list[tuple[float, float]]] = {}
    for event in validations:
        for source in event["validation"]:
            held_out.setdefault(source["source"], []).append((event["step"], source["loss"]))
    lines = [Line("training", column("loss")), Line("training, smoothed", _smooth(column("loss")))]
    lines += [Line(f"held-out {name}", points, dots=True) for name, points in held_out.items()]
    return [
        svg_chart("Loss", lines, x_label="step", y_label="nats a token"),
        svg_chart("Learning rate", [Line("rate", column("learning_rate"))], x_label="step", y_label="rate"),
        svg_chart("Gradient norm", [Line("before clipping", column("grad_norm"))], x_label="step", y_label="L2 norm"),
        svg_chart("Throughput", [Line("tokens/s", column("tokens_per_second"))], x_label="step", y_label="tokens/s"),
        svg_chart(
            "Model FLOPs utilisation " + _of_what(metrics[-1].get("mfu_of")).strip(" "),
            [Line("MFU", column("mfu")), Line("causal-exact", column("mfu_causal"))],
            x_label="step",
            y_label="share of peak",
        ),
        svg_areas("Where the time of a step goes", _parts_by_step(metrics), x_label="step", y_label="seconds"),
    ]


PARTS = ("forward/backward", "optimizer", "data", "other")


def _parts_of(record: dict[str, Any]) -> dict[str, float]:
    """The seconds of one step by part; they add up to it. A run of long ago has only told data from the rest."""
    known = [record.get(f"{part}_seconds", 0.0) for part in ("forward_backward", "optimizer", "data")]
    return dict(zip(PARTS, [*known, max(0.0, record["step_seconds"] - sum(known))], strict=True))


def _parts(metrics: list[dict[str, Any]]) -> dict[str, float]:
    return {part: sum(_parts_of(record)[part] for record in metrics) for part in PARTS}


def _parts_by_step(metrics: list[dict[str, Any]]) -> list[Line]:
    return [Line(part, [(record["step"], _parts_of(record)[part]) for record in metrics]) for part in PARTS]


def _said(parts: dict[str, float]) -> str:
    total = sum(parts.values()) or 1.0
    return "time of the steps: " + ", ".join(f"{part} {seconds / total:.0%}" for part, seconds in parts.items())


def _of_what(mfu_of: str | None) -> str:
    return {"datasheet": "of the datasheet's peak ", "measured": "of the measured matmul peak "}.get(mfu_of or "", "")


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Exponential mean with the bias of its start removed (Kingma and Ba, 2015, section 3)."""
    smoothed, mean, weight = [], 0.0, 0.0
    for x, y in points:
        if math.isfinite(y):
            mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * y, SMOOTHING * weight + (1 - SMOOTHING)
            smoothed.append((x, mean / weight))
    return smoothed


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _share(parts: dict[str, float], part: str) -> str:
    return f"{parts[part] / (sum(parts.values()) or 1.0):.0%}"


def _page(summary: Summary, curves: list[str], events: list[dict[str, Any]], config: str) -> str:
    facts = [
        ("step", f"{summary.step:,} of {summary.total_steps:,}"),
        ("tokens", f"{summary.tokens:,}"),
        ("training loss", f"{summary.loss:.4f}"),
        *(
            (f"perplexity, {name}", f"{perplexity:.2f}")
            for source in summary.validation
            for name, perplexity in [
                (source["source"], source["perplexity"]),
                *((f"{source['source']}, {name}", perplexity) for name, perplexity in _yardsticks(source)),
            ]
        ),
        ("tokens/s", quantity(summary.tokens_per_second)),
        (f"MFU {_of_what(summary.mfu_of)}", f"{summary.mfu:.1%}"),
        *([("MFU, causal-exact", f"{summary.mfu_causal:.1%}")] if summary.mfu_causal is not None else []),
        ("of the steps' time, forward/backward", _share(summary.parts, "forward/backward")),
        ("training time", duration(summary.training_seconds)),
    ]
    happened = table(
        (event["event"], event.get("step", ""), ", ".join(f"{k} {v}" for k, v in event.items() if k not in NAMED))
        for event in events
    )
    figures = "".join(f"<figure>{curve}</figure>" for curve in curves)
    body = f"""{cards(facts)}
<div class="curves">{figures}</div>
<details open="open"><summary>Events</summary>{happened}</details>
<details><summary>Settings</summary><pre>{text(config)}</pre></details>"""
    return page(summary.run, body, style=STYLE)

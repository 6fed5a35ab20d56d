"""The report of a run: one HTML page that opens from disk, and a summary for the terminal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.config import BigtrainError
from bigtrain.data import Funnel, read_funnels
from bigtrain.run.directory import RunDirectory
from bigtrain.run.figure import text_chart
from bigtrain.run.ledger import Ledger, account
from bigtrain.run.records import last_of_each_step, read_json_lines
from bigtrain.run.report_page import Report, loss_chart, of_what, parts_of_steps, report_page, yardsticks_of
from bigtrain.wording import duration, quantity


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
    goodput: Ledger
    report: str
    loss_curve: list[tuple[float, float]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the curve itself is in metrics.jsonl."""
        shown = {key: value for key, value in vars(self).items() if key not in ("loss_curve", "goodput")}
        return {**shown, "goodput": self.goodput.as_dict()}

    def __str__(self) -> str:
        lines = [
            f"{self.run}: step {self.step} of {self.total_steps}, {quantity(self.tokens)} tokens in "
            f"{duration(self.training_seconds)} of training over {self.starts} start(s)",
            f"loss {self.loss:.4f}, {quantity(self.tokens_per_second)} tokens/s, MFU {self.mfu:.1%} "
            f"{of_what(self.mfu_of)}(medians)",
            _said(self.parts),
            str(self.goodput),
            *(
                f"validation of {source['source']}: loss {source['loss']:.4f}, perplexity {source['perplexity']:.2f}"
                + "".join(f", {name} model {perplexity:.2f}" for name, perplexity in yardsticks_of(source))
                for source in self.validation
            ),
            "",
            "training loss",
            text_chart(self.loss_curve),
            "",
            f"the page with all curves: {self.report}",
        ]
        return "\n".join(lines)


def write_report(run: Path, samples: int = 0) -> Summary:
    """Write RUN/report.html and RUN/loss.svg from the run's records.

    Args:
        run: a run directory.
        samples: draw so many from the newest checkpoint, and keep them in RUN/samples.json.

    Raises:
        BigtrainError: `run` is no run directory, or has not done a step yet.
    """
    directory = RunDirectory.of_existing_run(run)
    settings = directory.settings()
    lines, events = list(read_json_lines(directory.metrics)), list(read_json_lines(directory.events))
    metrics = last_of_each_step(lines)
    if not metrics:
        raise BigtrainError(
            f"{run} has nothing to report yet",
            found="no step in metrics.jsonl",
            fix="train first: bigtrain train CONFIG",
        )
    if samples:
        draw_samples(directory, samples)
    validations = [event for event in events if event["event"] == "evaluate"]
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
        parts=parts_of_steps(metrics),
        training_seconds=sum(record["step_seconds"] for record in metrics),
        starts=sum(event["event"] in ("start", "resume") for event in events),
        goodput=account(events, lines),
        report=str(report),
        loss_curve=[(record["step"], record["loss"]) for record in metrics],
    )
    made = Report(
        summary=summary,
        metrics=metrics,
        undone=_undone(lines, metrics),
        events=events,
        samples=_samples(directory, validations),
        funnels=_funnels(settings.data.dir),
        config=directory.config.read_text(),
    )
    picture.write_text(loss_chart(made))
    report.write_text(report_page(made), encoding="utf-8")
    return summary


def draw_samples(directory: RunDirectory, number: int) -> None:
    """Let the newest checkpoint continue the beginnings of held-out documents. Raises BigtrainError without one."""
    from bigtrain.data import open_datasets
    from bigtrain.run.samples import draw, prompts
    from bigtrain.run.text_model import TextModel

    settings = directory.settings()
    model = TextModel.open(directory.root)
    held_out = open_datasets(settings.data, model_vocab_size=settings.model.vocab_size, split="validation")
    beginnings = prompts(held_out, model.tokenizer, number, model.context)
    drawn = draw(model, beginnings, settings.evaluate.sample_tokens)
    content = {"step": model.step, "samples": [sample.as_record() for sample in drawn]}
    directory.samples.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _samples(directory: RunDirectory, validations: list[dict[str, Any]]) -> list[tuple[int, list[dict[str, str]]]]:
    """The samples that there are, by step, those that training drew and those that a report did."""
    found = {event["step"]: event["samples"] for event in validations if event.get("samples")}
    if directory.samples.is_file():
        drawn = json.loads(directory.samples.read_text(encoding="utf-8"))
        found.setdefault(drawn["step"], drawn["samples"])
    return sorted(found.items())


def _undone(lines: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of steps that were done again later."""
    counted = {id(record) for record in metrics}
    return [record for record in lines if id(record) not in counted]


def _funnels(data: Path) -> dict[str, Funnel]:
    """What became of the documents, where the data are here and have told."""
    try:
        return read_funnels(data)
    except (BigtrainError, OSError):
        return {}


def _newest_validation(directory: RunDirectory, step: int, along_the_way: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `bigtrain eval` found at the newest step, else what training last recorded."""
    evaluation = json.loads(directory.evaluation.read_text()) if directory.evaluation.is_file() else {}
    if evaluation.get("step") == step:
        validation: list[dict[str, Any]] = evaluation["validation"]
        return validation
    return along_the_way[-1]["validation"] if along_the_way else []


def _said(parts: dict[str, float]) -> str:
    total = sum(parts.values()) or 1.0
    return "time of the steps: " + ", ".join(f"{part} {seconds / total:.0%}" for part, seconds in parts.items())


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]

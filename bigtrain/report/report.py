"""The report of a run: one HTML page that opens from disk, and a summary for the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median_high
from typing import Any

from bigtrain.base import BigtrainError, write_atomically
from bigtrain.data import Funnel, read_funnels
from bigtrain.report.figure import svg_chart
from bigtrain.report.report_page import RunRecords, loss_chart, parts_of_steps, report_page
from bigtrain.report.summary import RunSummary, Summary
from bigtrain.rundir import STARTS, Event, RunDirectory, account, last_of_each_step, read_events, read_metrics_lines


def write_report(run: Path, samples: int = 0) -> RunSummary:
    """Write RUN/report.html and RUN/loss.svg from the run's records.

    Args:
        run: a run directory.
        samples: how many to draw from the newest checkpoint, which are kept in RUN/samples.json.

    Raises:
        BigtrainError: `run` is not a run directory, or no step is done yet.
    """
    directory = RunDirectory.of_existing_run(run)
    settings = directory.settings()
    lines, events = list(read_metrics_lines(directory.metrics)), list(read_events(directory.events))
    metrics = last_of_each_step(lines)
    if not metrics:
        raise BigtrainError(
            f"{run} has nothing to report yet",
            found="no step in metrics.jsonl",
            fix="train first: bigtrain train CONFIG",
        )
    if samples:
        draw_samples(directory, samples)
    validations = [event for event in events if event["event"] == Event.EVALUATE]
    report = directory.root / "report.html"
    ledger = account(events, lines)
    summary = Summary(
        run=str(run),
        step=metrics[-1]["step"],
        total_steps=settings.total_steps,
        tokens=sum(record.get("tokens", 0) for record in metrics),
        loss=metrics[-1]["loss"],
        validation=_newest_validation(directory, metrics[-1]["step"], validations),
        tokens_per_second=median_high([record.get("tokens_per_second", 0.0) for record in metrics]),
        mfu=median_high([record.get("mfu", 0.0) for record in metrics]),
        mfu_causal=median_high(causal) if (causal := [r["mfu_causal"] for r in metrics if "mfu_causal" in r]) else None,
        mfu_of=metrics[-1].get("mfu_of"),
        parts=parts_of_steps(metrics),
        training_seconds=sum(record.get("step_seconds", 0.0) for record in metrics),
        starts=sum(event["event"] in STARTS for event in events),
        report=str(report),
        goodput=ledger.summary(),
    )
    records = RunRecords(
        summary=summary,
        ledger=ledger,
        metrics=metrics,
        undone=_undone(lines, metrics),
        events=events,
        samples=_samples(directory, validations),
        funnels=_funnels(settings.data.dir),
        config=directory.config.read_text(),
    )
    write_atomically(directory.root / "loss.svg", svg_chart(loss_chart(records)) + "\n")
    write_atomically(report, report_page(records))
    return RunSummary(summary, ledger, [(record["step"], record["loss"]) for record in metrics])


def draw_samples(directory: RunDirectory, number: int) -> None:
    """Let the newest checkpoint continue the starts of held-out documents. Raises BigtrainError where there is none."""
    from bigtrain.data import open_datasets
    from bigtrain.trained import TextModel, draw, prompts

    settings = directory.settings()
    model = TextModel.open(directory.root)
    held_out = open_datasets(settings.data, model_vocab_size=settings.model.vocab_size, split="validation")
    beginnings = prompts(held_out, model.tokenizer, number, model.context)
    drawn = draw(model, beginnings, settings.evaluate.sample_tokens)
    content = {"step": model.step, "samples": [sample.as_record() for sample in drawn]}
    write_atomically(directory.samples, json.dumps(content, indent=1) + "\n")


def _samples(directory: RunDirectory, validations: list[dict[str, Any]]) -> list[tuple[int, list[dict[str, str]]]]:
    """The samples that training or a report drew, by step."""
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
    """What became of the documents, where the data are here."""
    try:
        return read_funnels(data)
    except (BigtrainError, OSError):
        return {}


def _newest_validation(directory: RunDirectory, step: int, along_the_way: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of `bigtrain eval` at the newest step, else what training last recorded."""
    evaluation = json.loads(directory.evaluation.read_text()) if directory.evaluation.is_file() else {}
    if evaluation.get("step") == step:
        validation: list[dict[str, Any]] = evaluation["validation"]
        return validation
    return along_the_way[-1]["validation"] if along_the_way else []

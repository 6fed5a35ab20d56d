"""The report of a run: one HTML page that opens from disk, and a summary for the terminal."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bigtrain.base import BigtrainError, as_record, read_json, write_atomically
from bigtrain.data import Funnel, read_funnels
from bigtrain.report.figure import svg_chart
from bigtrain.report.report_page import RunRecords, loss_chart, report_page
from bigtrain.report.step_columns import F64, ReadSteps
from bigtrain.report.summary import RunSummary, Summary, expectations
from bigtrain.rundir import STARTS, Event, RunDirectory, account, read_events

logger = logging.getLogger(__name__)
SideFile = TypeVar("SideFile")


def write_report(run: Path, samples: int = 0) -> RunSummary:
    """Write RUN/report.html and RUN/loss.svg from the run's records.

    Args:
        run: a run directory.
        samples: how many to draw from the newest checkpoint, which are kept in RUN/samples.json.

    Raises:
        BigtrainError: `run` is not a run directory, or no step is done yet. Where the page cannot be written, a warning
            says so, and the summary names none.
    """
    directory = RunDirectory.of_existing_run(run)
    settings = directory.settings()
    steps, times = ReadSteps.read(directory.metrics)
    events = list(read_events(directory.events))
    counted, last = steps.counted, steps.last
    if not len(counted):
        raise BigtrainError(
            f"{run} has nothing to report yet",
            found="no step in metrics.jsonl",
            fix="train first: bigtrain train CONFIG",
        )
    if samples:
        draw_samples(directory, samples)
    validations = [event for event in events if event["event"] == Event.EVALUATE]
    report = directory.root / "report.html"
    ledger = account(events, times)
    del times  # fifty megabytes of a run of a million steps, which the charts can use
    summary = Summary(
        run=str(run),
        step=last["step"],
        total_steps=settings.total_steps,
        tokens=sum(counted.tokens.tolist()),
        loss=last["loss"],
        validation=_newest_validation(directory, last["step"], validations),
        tokens_per_second=_median(counted.or_zero("tokens_per_second")),
        mfu=_median(counted.or_zero("mfu")),
        mfu_causal=_median(causal) if len(causal := counted.points("mfu_causal")[:, 1]) else None,
        mfu_of=last.get("mfu_of"),
        parts={part: float(seconds.sum()) for part, seconds in counted.parts().items()},
        training_seconds=float(counted.or_zero("step_seconds").sum()),
        starts=sum(event["event"] in STARTS for event in events),
        report=str(report),
        goodput=ledger.summary(),
        expectations=expectations(events, counted.points("step_seconds"), last),
    )
    records = RunRecords(
        summary=summary,
        ledger=ledger,
        steps=steps,
        events=events,
        samples=_samples(directory, validations),
        funnels=_funnels(settings.data.dir),
        config=directory.config.read_text(),
    )
    try:
        write_atomically(directory.root / "loss.svg", svg_chart(loss_chart(records)) + "\n", follow_link=False)
        write_atomically(report, report_page(records), follow_link=False)
    except OSError as error:  # a run that may only be read has a summary all the same
        logger.warning(f"{report} is not written: {error.strerror}")
        summary = replace(summary, report=None)
    return RunSummary(summary, ledger, counted.points("loss"))


def _median(values: F64) -> float:
    """The middle value, or the higher one of two."""
    return float(np.partition(values, len(values) // 2)[len(values) // 2])


def draw_samples(directory: RunDirectory, number: int) -> None:
    """Let the newest checkpoint continue the starts of held-out documents. Raises BigtrainError where there is none."""
    from bigtrain.data import open_datasets
    from bigtrain.trained import TextModel, draw, prompts

    settings = directory.settings_for_data()
    model = TextModel.open(directory.root)
    held_out = open_datasets(settings.data, model_vocab_size=settings.model.vocab_size, split="validation")
    beginnings = prompts(held_out, settings, model.tokenizer, number)
    drawn = draw(model, beginnings, settings.evaluate.sample_tokens)
    content = {"step": model.step, "samples": [sample.as_record() for sample in drawn]}
    write_atomically(directory.samples, json.dumps(content, indent=1) + "\n", follow_link=False)


def _samples(directory: RunDirectory, validations: list[dict[str, Any]]) -> list[tuple[int, list[dict[str, str]]]]:
    """The samples that training or a report drew, by step."""
    found = {event["step"]: event["samples"] for event in validations if event.get("samples")}
    drawn = _side_file(directory.samples, _DrawnSamples)
    if drawn is not None:
        found.setdefault(drawn.step, drawn.samples)
    return sorted(found.items())


@dataclass(frozen=True)
class _DrawnSamples:
    """RUN/samples.json."""

    step: int
    samples: list[dict[str, str]]


@dataclass(frozen=True)
class _KeptEvaluation:
    """RUN/evaluation.json, as far as the report needs it."""

    step: int
    validation: list[dict[str, Any]]


def _side_file(path: Path, kind: type[SideFile]) -> SideFile | None:
    """The content of a file beside the records; None where it is missing, or cannot be read, which a warning says."""
    try:
        return as_record(kind, read_json(path), path)
    except FileNotFoundError:
        return None
    except (BigtrainError, OSError) as error:
        cause = error.found if isinstance(error, BigtrainError) else error.strerror
        logger.warning(f"left out: {path} cannot be read: {cause}")
        return None


def _funnels(data: Path) -> dict[str, Funnel]:
    """What became of the documents, where the data are here."""
    try:
        return read_funnels(data)
    except OSError:
        return {}
    except BigtrainError as error:
        if error.__cause__ is not None:  # it is there, and cannot be read
            logger.warning(f"left out: {error.what}: {error.found}")
        return {}


def _newest_validation(directory: RunDirectory, step: int, along_the_way: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of `bigtrain eval` at the newest step, else what training last recorded."""
    evaluation = _side_file(directory.evaluation, _KeptEvaluation)
    if evaluation is not None and evaluation.step == step:
        return evaluation.validation
    return along_the_way[-1]["validation"] if along_the_way else []

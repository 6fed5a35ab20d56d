"""Reads metrics.jsonl and events.jsonl, which a kill, a bad disk or another program may have changed.

::

    a line ──► JSON object? ──► each field of the type that bigtrain/rundir/{metrics,events}.py give it?
                  │ no                     │ no: the field is left out
                  ▼                        ▼
               skipped            a field that readers need is missing? ──► skipped

So every reader gets numbers that are numbers, within bounds, and fields of later versions as they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any, get_type_hints

from typing_extensions import TypedDict

from bigtrain.rundir.bounds import Count, Seconds
from bigtrain.rundir.events import EVENTS, Event
from bigtrain.rundir.json_lines import (
    last_json_lines,
    metrics_line,
    newest_metrics_line,
    parsed_line,
    whole_lines,
)
from bigtrain.rundir.metrics import StepMetrics

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Record = dict[str, Any]

_OF_EVERY_LINE = {"step": Count, "start": Count, "time": Seconds, "uptime": Seconds}
_NEEDED = {Event.EVALUATE: ("step", "validation"), Event.COMMIT: ("step",), Event.REWIND: ("decision",)}
"""Fields without which an event says nothing to its readers."""


def read_events(path: Path) -> Iterator[Record]:
    """The events of a run, in order. Lines that are no event are skipped, a missing file has none.

    Keys are shared by all of them, which is a third of the memory of many.
    """
    for event in _records(map(event_of, _lines(path))):
        yield {intern(key): value for key, value in event.items()}


def newest_events(path: Path) -> list[Record]:
    """The events at the end of the file, in order: a long file is not read through."""
    return list(_records(map(_event, last_json_lines(path))))


def event_of(line: bytes) -> Record | None:
    """The event of a line of events.jsonl; None where it is none."""
    return parsed_line(line, _event)


def _event(record: Record) -> Record | None:
    name = record.get("event")
    if not isinstance(name, str):
        return None
    checked = _right_fields(record, name)
    return checked if all(key in checked for key in _NEEDED.get(name, ())) else None  # type: ignore[call-overload]


def read_metrics_lines(path: Path) -> Iterator[Record]:
    """The lines of metrics.jsonl in order, those of repeated steps included. A line without step and loss is none."""
    return _records(map(step_of, _lines(path)))


def step_of(line: bytes) -> Record | None:
    """The record of a line of metrics.jsonl; None where it has no step and loss."""
    from pydantic import ValidationError

    try:  # a good line is parsed and checked at once, in a third of the time
        record: Record = _kind(None).validate_json(line)
    except ValidationError:
        return parsed_line(line, _metrics)
    return record if "step" in record and "loss" in record else None


def _lines(path: Path) -> Iterator[bytes]:
    return (line for line, _ in whole_lines(path))


def _records(records: Iterable[Record | None]) -> Iterator[Record]:
    return (record for record in records if record is not None)


def read_metrics(path: Path) -> list[Record]:
    """The loss curve: one record a step, in order of the steps, the last written line of each."""
    return last_of_each_step(read_metrics_lines(path))


def last_of_each_step(records: Iterable[Record]) -> list[Record]:
    """One record a step, in order of the steps: the last of each."""
    by_step = {record["step"]: record for record in records}
    return [by_step[step] for step in sorted(by_step)]


def newest_metrics(path: Path) -> Record | None:
    """The record of the step that the run did last; None where there is none yet."""
    return newest_metrics_line(path, _metrics)


def metrics_of_step(path: Path, step: int) -> Record | None:
    """The record of a step that counts; None where the run has not done it."""
    return metrics_line(path, step, _metrics)


def _metrics(record: Record) -> Record | None:
    checked = _right_fields(record, None)
    return checked if "step" in checked and "loss" in checked else None


def is_right(record: Record) -> bool:
    """Whether each of some fields of a line of metrics.jsonl is of its type."""
    return not _wrong_fields(None)(record)


def _right_fields(record: Record, event: str | None) -> Record:
    """The record without the fields that are not of their type."""
    wrong = _wrong_fields(event if event in EVENTS else "" if event is not None else None)(record)
    return _right_fields({k: v for k, v in record.items() if k not in wrong}, event) if wrong else record


def _is_text(key: str) -> bool:
    return all(not "\ud800" <= character <= "\udfff" for character in key)


@cache
def _kind(event: str | None) -> TypeAdapter[dict[str, Any]]:
    """The type of a line of metrics.jsonl (None), of an event, or of an unknown event ("")."""
    from pydantic import ConfigDict, TypeAdapter

    kinds: dict[str, Any] = dict(_OF_EVERY_LINE)
    cls = StepMetrics if event is None else EVENTS.get(Event(event)) if event else None
    if cls is not None:
        hints = get_type_hints(cls, include_extras=True)
        kinds |= {f.name.removesuffix("_"): hints[f.name] for f in fields(cls) if f.name != "auxiliary"}
    kind = TypedDict("kind", kinds, total=False)  # type: ignore[misc]
    kind.__pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[attr-defined]
    return TypeAdapter[dict[str, Any]](kind)  # type: ignore[arg-type]


@cache
def _wrong_fields(event: str | None) -> Callable[[Mapping[str, Any]], set[str]]:
    """Finds the fields that are wrong in a line of such a type."""
    from pydantic import ValidationError

    validate = _kind(event).validate_python

    def wrong(record: Mapping[str, Any]) -> set[str]:
        try:
            validate(record)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
            # Half of a surrogate pair in a key is an error of the whole record.
            return {str(each["loc"][0]) for each in found if each["loc"]} or {k for k in record if not _is_text(k)}
        return set()

    return wrong

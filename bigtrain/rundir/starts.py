"""The records of a run by its starts: which line belongs to which start, and how long after its start it was written.

A line has the number of its start and the age of its process. For versions that did not write these, the order of the
lines and the time of day are used.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from bigtrain.rundir.bounds import LONGEST_SECONDS
from bigtrain.rundir.events import STARTS, Event
from bigtrain.rundir.metrics_columns import F64, I64, MetricsColumns, read_metrics_columns

Record = Mapping[str, Any]

Item = TypeVar("Item")
Mask = npt.NDArray[np.bool_]

MICRO = 1_000_000
BATCH = 256


def number_of_next_start(events: Iterable[Record]) -> int:
    """The number of the next start: one more than the highest so far."""
    begun, highest = 0, 0
    for event in events:
        begun += event.get("event") in STARTS
        highest = max(highest, begun, number_of(event))
    return highest + 1


@dataclass(frozen=True)
class Entry:
    """An event, and the age of its process in microseconds when it was written."""

    age: int
    record: Record
    number: int
    """Its position among the events."""


@dataclass(frozen=True)
class StepTimes:
    """The lines of metrics.jsonl, as far as the ledger needs them: 48 bytes each, for there may be millions."""

    steps: I64
    starts: I64
    """The number of the start that each has; 0 without one."""
    uptimes: I64
    """Microseconds, as the following; -1 without one."""
    times: I64
    took: I64
    waited: I64
    """Of it, for data."""

    @classmethod
    def of(cls, records: Iterable[Record]) -> StepTimes:
        """Those of records, in their order; one without a step is none."""
        lines = (record for record in records if isinstance(record.get("step"), int))
        return cls.joined(cls.of_columns(MetricsColumns.of(some)) for some in batches(lines))

    @classmethod
    def joined(cls, parts: Iterable[StepTimes]) -> StepTimes:
        """One after the other. Arrays that grow keep no part beside the whole."""
        columns = {field.name: array("q") for field in fields(cls)}
        for part in parts:
            for name, column in columns.items():
                column.frombytes(getattr(part, name).tobytes())
        return cls(*(np.frombuffer(column, np.int64) for column in columns.values()))

    @classmethod
    def of_columns(cls, columns: MetricsColumns) -> StepTimes:
        """Those of lines of the file."""
        uptimes = columns.numbers["uptime"]
        return cls(
            columns.counts["step"],
            np.maximum(columns.counts["start"], 0),
            np.where(np.isnan(uptimes), -1, _micros_of_many(uptimes)),
            *(_micros_of_many(columns.numbers[name]) for name in ("time", "step_seconds", "data_seconds")),
        )

    def __len__(self) -> int:
        return len(self.steps)


def read_step_times(metrics: Path) -> StepTimes:
    """Those of all lines of a metrics.jsonl."""
    return StepTimes.joined(StepTimes.of_columns(columns) for columns in read_metrics_columns(metrics))


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in lists of some hundred, as columns are made of lists faster than of single items."""
    iterator = iter(items)
    while some := list(islice(iterator, BATCH)):
        yield some


@dataclass(frozen=True)
class StepRun:
    """Steps of a start without an event between them."""

    start: Start
    chosen: slice
    """Of the start's lines."""

    @property
    def ages(self) -> I64:
        """[n], microseconds."""
        return self.start.ages[self.chosen]

    @property
    def lines(self) -> I64:
        """[n], positions among all lines."""
        return self.start.lines[self.chosen]

    @property
    def steps(self) -> I64:
        """[n]"""
        return self.start.columns.steps[self.lines]


@dataclass(frozen=True)
class StartEnd:
    """How a start ended, as far as the time up to the next one depends on it."""

    boot: tuple[str, int] | None
    """The boot id of its machine, and when the process started there, in microseconds since that boot."""
    span: int
    """Microseconds from the start of its process to its last record."""
    time: int
    """Of its last record, by the time of day, in microseconds."""
    stopped: bool
    """Whether it ended by itself or on request."""
    finished: bool
    """Whether it reached the end of the schedule."""


@dataclass(frozen=True)
class Start:
    """One start of the run, and its records."""

    number: int
    begin: Record
    """Its `start` or `resume` event; empty where it ended before it."""
    events: list[Entry]
    """In the order of the file, and of their ages."""
    lines: I64
    """Its lines among the `columns`."""
    ages: I64
    """Of these lines, in microseconds, rising."""
    columns: StepTimes

    def entries(self) -> Iterator[Entry | StepRun]:
        """Its records in the order of time; an event is before a step of the same instant."""
        done = 0
        for entry in self.events:
            upto = int(self.ages.searchsorted(entry.age))
            if upto > done:
                yield StepRun(self, slice(done, upto))
                done = upto
            yield entry
        if done < len(self.lines):
            yield StepRun(self, slice(done, len(self.lines)))

    def recorded(self, key: str) -> int:
        """Microseconds before the start of its process, a field of its `clock`; 0 where it has none."""
        clock = self.begin.get("clock")
        return micros_of(clock, key) if isinstance(clock, dict) else 0

    @property
    def has_trained(self) -> bool:
        """Whether it has done a step."""
        return len(self.lines) > 0

    @property
    def wall_begin(self) -> int:
        """When its process started, by the time of day."""
        if self.events and not (self.has_trained and self.ages[0] < self.events[0].age):
            return micros_of(self.events[0].record, "time") - self.events[0].age
        return int(self.columns.times[self.lines[0]] - self.ages[0])

    @property
    def boot(self) -> tuple[str, int] | None:
        """The boot id of its machine, and when the process started there, in microseconds since that boot."""
        clock = self.begin.get("clock")
        if not isinstance(clock, dict) or not clock.get("boot_id"):
            return None
        return str(clock["boot_id"]), micros_of(clock, "boot_seconds") - micros_of(clock, "process_seconds")

    @property
    def end(self) -> StartEnd:
        """How it ended."""
        stops = [entry.record for entry in self.events if entry.record.get("event") == Event.STOP]
        if self.has_trained and not (self.events and self.events[-1].age > self.ages[-1]):
            span, time = int(self.ages[-1]), int(self.columns.times[self.lines[-1]])
        else:
            span, time = self.events[-1].age, micros_of(self.events[-1].record, "time")
        finished = any(stop.get("exit_status") == 0 for stop in stops)
        return StartEnd(self.boot, span, time, bool(stops), finished)


class Numbering:
    """Gives each event the number of its start: the number in the record, else by its position."""

    def __init__(self, begun: int = 0, current: int = 0) -> None:
        """Go on after so many starts, of which the last one has this number."""
        self.begun, self.current = begun, current

    def of(self, event: Record) -> int | None:
        """The number for the next event; None for one that is left out."""
        if event["event"] in STARTS:
            self.begun += 1
            self.current = max(number_of(event), self.begun)
        elif event["event"] == Event.FALLBACK and not number_of(event):
            return None  # written before the start that it belongs to
        return number_of(event) or self.current


def starts_of(events: Sequence[Record], steps: StepTimes, numbering: Numbering | None = None) -> list[Start]:
    """The records by start: by the number in the record, else by its position or its time of day."""
    numbering = numbering or Numbering()
    of_events: dict[int, list[tuple[int, Record]]] = {}
    began_at: dict[int, int] = {}
    for position, event in enumerate(events):
        number = numbering.of(event)
        if event["event"] in STARTS:
            began_at[numbering.current] = micros_of(event, "time")
        if number is not None:
            of_events.setdefault(number, []).append((position, event))
    of_step = steps.starts
    if not of_step.all():  # of a version that did not write it
        order = np.array(sorted(began_at), np.int64)
        began = np.array([began_at[number] for number in order.tolist()][1:], np.int64)
        latest = np.maximum.accumulate(np.where(of_step > 0, 0, steps.times))
        place = np.maximum.accumulate(began).searchsorted(latest, "right")
        of_step = np.where(of_step > 0, of_step, order[place] if len(order) else 0)
    in_order = np.argsort(of_step, kind="stable")
    known, first = np.unique(of_step[in_order], return_index=True)
    of_steps = dict(zip(known.tolist(), np.split(in_order, first[1:]), strict=False))  # of no lines there is one piece
    numbers = sorted(of_events.keys() | of_steps.keys())
    none = np.empty(0, np.int64)
    return [_start(n, of_events.get(n, []), of_steps.get(n, none), steps) for n in numbers]


def _start(number: int, events: list[tuple[int, Record]], lines: I64, columns: StepTimes) -> Start:
    begin = next((event for _, event in events if event["event"] in STARTS), {})
    first = micros_of(begin or events[0][1], "time") if events else int(columns.times[lines[0]])
    zero = first - micros_of(begin, "uptime")
    entries: list[Entry] = []
    latest = 0  # each file is in order, whatever its clocks say
    for position, event in events:
        age = micros_of(event, "uptime") if "uptime" in event else micros_of(event, "time") - zero
        latest = max(age, latest)
        entries.append(Entry(latest, event, position))
    uptimes = columns.uptimes[lines]
    ages = np.where(uptimes >= 0, uptimes, columns.times[lines] - zero)
    return Start(number, begin, entries, lines, np.maximum.accumulate(np.maximum(ages, 0)), columns)


def undone_of(starts: Iterable[Start], lines: int) -> Mask:
    """For each of so many lines of metrics.jsonl, whether it does not count: a later start, or a rewind, went back
    before its step."""
    undone = np.zeros(lines, np.bool_)
    counted: array[int] = array("q")
    for start in starts:
        steps = start.columns.steps
        for entry in start.entries():
            for own in _rising(entry) if isinstance(entry, StepRun) else [entry]:
                back_to = goes_back_to(own)
                while back_to is not None and counted and steps[counted[-1]] > back_to:
                    undone[counted.pop()] = True
                if isinstance(own, StepRun):
                    counted.frombytes(own.lines.tobytes())
    return undone


def _rising(run: StepRun) -> Iterator[StepRun]:
    """The same in pieces, in each of which the steps rise."""
    cuts = run.chosen.start + 1 + np.flatnonzero(np.diff(run.steps) <= 0)
    for begin, end in pairwise([run.chosen.start, *cuts.tolist(), run.chosen.stop]):
        yield StepRun(run.start, slice(begin, end))


def goes_back_to(entry: Entry | StepRun) -> int | None:
    """The step after which no step that was done before counts any more; None where all still count."""
    if isinstance(entry, StepRun):
        return int(entry.steps.min()) - 1
    event = entry.record
    step = event.get("to_step") if event["event"] == Event.REWIND else event.get("step")
    return step if event["event"] in (*STARTS, Event.REWIND) and isinstance(step, int) else None


def between(before: StartEnd, after: Start) -> int:
    """Microseconds from the last record of a start to the start of the next process."""
    if before.boot and after.boot and before.boot[0] == after.boot[0]:
        return max(0, after.boot[1] - before.boot[1] - before.span)
    return max(0, after.wall_begin - before.time)


def number_of(record: Record) -> int:
    """The number of the start that a record has; 0 where it has none."""
    number = record.get("start")
    return number if isinstance(number, int) and number > 0 else 0


def seconds_of(record: Record, key: str) -> float:
    """A number of seconds in a record; 0 where there is none that makes sense."""
    value = record.get(key)
    return float(value) if isinstance(value, int | float) and 0 < value < LONGEST_SECONDS else 0.0


def micros_of(record: Record, key: str) -> int:
    """The same in microseconds."""
    return round(seconds_of(record, key) * MICRO)


def _micros_of_many(seconds: F64) -> I64:
    """The same of many numbers; 0 for those that make no sense."""
    sensible = (seconds > 0) & (seconds < LONGEST_SECONDS)
    return np.rint(np.where(sensible, seconds, 0.0) * MICRO).astype(np.int64)

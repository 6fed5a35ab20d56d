"""The records of a run by its starts: which line belongs to which start, and how long after its start it was written.

A line has the number of its start and the age of its process. For versions that did not write these, the order of the
lines and the time of day are used.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from typing import Any, NamedTuple

from bigtrain.rundir.bounds import LONGEST_SECONDS
from bigtrain.rundir.events import STARTS, Event

Record = Mapping[str, Any]

MICRO = 1_000_000


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


class StepEntry(NamedTuple):
    """A line of metrics.jsonl, in microseconds."""

    age: int
    index: int
    """Its position among the lines."""
    step: int
    took: int
    waited: int
    """Of it, for data."""


class StepTimes:
    """The lines of metrics.jsonl, as far as the ledger needs them: 48 bytes each, for there may be millions."""

    def __init__(self) -> None:
        self.steps, self.starts, self.uptimes = array("q"), array("q"), array("q")
        self.times, self.took, self.waited = array("q"), array("q"), array("q")

    @classmethod
    def of(cls, records: Iterable[Record]) -> StepTimes:
        """Those of records, in their order; one without a step is none."""
        columns = cls()
        for record in records:
            if isinstance(record.get("step"), int):
                columns.append(record)
        return columns

    def append(self, record: Record) -> None:
        """Add a line."""
        self.steps.append(record["step"])
        self.starts.append(number_of(record))
        self.uptimes.append(micros_of(record, "uptime") if "uptime" in record else -1)
        self.times.append(micros_of(record, "time"))
        self.took.append(micros_of(record, "step_seconds"))
        self.waited.append(micros_of(record, "data_seconds"))

    def __len__(self) -> int:
        return len(self.steps)


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
    indices: array[int]
    """Its lines among the `columns`."""
    ages: array[int]
    """Of these lines, rising."""
    columns: StepTimes

    def entries(self) -> Iterator[Entry | StepEntry]:
        """Its records in the order of time; an event is before a step of the same instant."""
        return merge(self.events, self._steps(), key=lambda entry: entry.age)

    def _steps(self) -> Iterator[StepEntry]:
        columns = self.columns
        for index, age in zip(self.indices, self.ages, strict=True):
            yield StepEntry(age, index, columns.steps[index], columns.took[index], columns.waited[index])

    def recorded(self, key: str) -> int:
        """Microseconds before the start of its process, a field of its `clock`; 0 where it has none."""
        clock = self.begin.get("clock")
        return micros_of(clock, key) if isinstance(clock, dict) else 0

    @property
    def has_trained(self) -> bool:
        """Whether it has done a step."""
        return bool(self.indices)

    @property
    def wall_begin(self) -> int:
        """When its process started, by the time of day."""
        if self.events and not (self.ages and self.ages[0] < self.events[0].age):
            return micros_of(self.events[0].record, "time") - self.events[0].age
        return self.columns.times[self.indices[0]] - self.ages[0]

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
        if self.ages and not (self.events and self.events[-1].age > self.ages[-1]):
            span, time = self.ages[-1], self.columns.times[self.indices[-1]]
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
    of_steps: dict[int, array[int]] = {}
    order, current = sorted(began_at), 0
    for index, number in enumerate(steps.starts):
        if not number:  # of a version that did not write it
            while current + 1 < len(order) and began_at[order[current + 1]] <= steps.times[index]:
                current += 1
            number = order[current] if order else 0
        of_steps.setdefault(number, array("q")).append(index)
    numbers = sorted(of_events.keys() | of_steps.keys())
    return [_start(n, of_events.get(n, []), of_steps.get(n, array("q")), steps) for n in numbers]


def _start(number: int, events: list[tuple[int, Record]], indices: array[int], columns: StepTimes) -> Start:
    begin = next((event for _, event in events if event["event"] in STARTS), {})
    first = micros_of(begin or events[0][1], "time") if events else columns.times[indices[0]]
    zero = first - micros_of(begin, "uptime")
    entries: list[Entry] = []
    latest = 0  # each file is in order, whatever its clocks say
    for position, event in events:
        age = micros_of(event, "uptime") if "uptime" in event else micros_of(event, "time") - zero
        latest = max(age, latest)
        entries.append(Entry(latest, event, position))
    ages, latest = array("q"), 0
    for index in indices:
        uptime = columns.uptimes[index]
        latest = max(latest, uptime if uptime >= 0 else columns.times[index] - zero)
        ages.append(latest)
    return Start(number, begin, entries, indices, ages, columns)


def undone_of(starts: Iterable[Start]) -> set[int]:
    """The lines of metrics.jsonl that do not count, because a later start or a rewind went back before their step."""
    undone: set[int] = set()
    counted: array[int] = array("q")
    for start in starts:
        steps = start.columns.steps
        for entry in start.entries():
            step = goes_back_to(entry)
            while step is not None and counted and steps[counted[-1]] > step:
                undone.add(counted.pop())
            if isinstance(entry, StepEntry):
                counted.append(entry.index)
    return undone


def goes_back_to(entry: Entry | StepEntry) -> int | None:
    """The step after which no step that was done before counts any more; None where all still count."""
    if isinstance(entry, StepEntry):
        return entry.step - 1
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

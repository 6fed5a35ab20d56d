"""The records of a run by its starts: which line belongs to which start, and how long after its start it was written.

A line has the number of its start and the age of its process. For versions that did not write these, the order of the
lines and the time of day are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bigtrain.rundir.bounds import LONGEST_SECONDS
from bigtrain.rundir.events import STARTS, Event

Record = Mapping[str, Any]

MICRO = 1_000_000


def number_of_next_start(events: Iterable[Record]) -> int:
    """The number of the next start: one more than the highest so far."""
    begun, highest = 0, 0
    for event in events:
        begun += event.get("event") in STARTS
        highest = max(highest, begun, _number(event))
    return highest + 1


@dataclass
class Entry:
    """A record, and the age of its process in microseconds when it was written."""

    record: Record
    age: int
    number: int = -1
    """The position of an event among the events; -1 for a step."""

    @property
    def is_step(self) -> bool:
        """Whether it is a line of metrics.jsonl."""
        return self.number < 0


@dataclass
class Start:
    """One start of the run, and its records in the order of time."""

    entries: list[Entry]
    begin: Record
    """Its `start` or `resume` event; empty where it ended before it."""

    def recorded(self, key: str) -> int:
        """Microseconds before the start of its process, a field of its `clock`; 0 where it has none."""
        clock = self.begin.get("clock")
        return micros_of(clock, key) if isinstance(clock, dict) else 0

    @property
    def stopped(self) -> bool:
        """Whether it ended by itself or on request."""
        return any(entry.record.get("event") == Event.STOP for entry in self.entries)

    @property
    def finished(self) -> bool:
        """Whether it reached the end of the schedule."""
        return any(e.record.get("event") == Event.STOP and e.record.get("exit_status") == 0 for e in self.entries)

    @property
    def has_trained(self) -> bool:
        """Whether it has done a step."""
        return any(entry.is_step for entry in self.entries)

    @property
    def span(self) -> int:
        """Microseconds from the start of its process to its last record."""
        return self.entries[-1].age

    @property
    def wall_begin(self) -> int:
        """When its process started, by the time of day."""
        return micros_of(self.entries[0].record, "time") - self.entries[0].age

    @property
    def boot(self) -> tuple[str, int] | None:
        """The boot id of its machine, and when the process started there, in microseconds since that boot."""
        clock = self.begin.get("clock")
        if not isinstance(clock, dict) or not clock.get("boot_id"):
            return None
        return str(clock["boot_id"]), micros_of(clock, "boot_seconds") - micros_of(clock, "process_seconds")


def starts_of(events: list[Record], steps: list[Record]) -> list[Start]:
    """The records by start: by the number in the record, else by its position or its time of day."""
    rows: dict[int, list[tuple[Record, int]]] = {}
    begun, current, began_at = 0, 0, {}
    for number, event in enumerate(events):
        if event["event"] in STARTS:
            begun += 1
            current = max(_number(event), begun)
            began_at[current] = micros_of(event, "time")
        elif event["event"] == Event.FALLBACK and not _number(event):
            continue  # written before the start that it belongs to
        rows.setdefault(_number(event) or current, []).append((event, number))
    order, current = sorted(began_at), 0
    for step in steps:
        if not (number := _number(step)):  # of a version that did not write it
            while current + 1 < len(order) and began_at[order[current + 1]] <= micros_of(step, "time"):
                current += 1
            number = order[current] if order else 0
        rows.setdefault(number, []).append((step, -1))
    return [_start(rows[number]) for number in sorted(rows)]


def _start(rows: list[tuple[Record, int]]) -> Start:
    begin = next((record for record, _ in rows if record.get("event") in STARTS), {})
    zero = micros_of(begin or rows[0][0], "time") - micros_of(begin, "uptime")
    entries, latest = [], {True: 0, False: 0}
    for record, number in rows:
        age = micros_of(record, "uptime") if "uptime" in record else micros_of(record, "time") - zero
        latest[number < 0] = age = max(age, latest[number < 0])  # each file is in order, whatever its clocks say
        entries.append(Entry(record, age, number))
    entries.sort(key=lambda entry: entry.age)  # stable: an event before a step of the same instant
    return Start(entries, begin)


def undone_of(starts: list[Start]) -> set[int]:
    """The ids of the entries of steps that do not count, because a later start or a rewind went back before them."""
    undone: set[int] = set()
    counted: list[Entry] = []

    def back_to(step: int) -> None:
        while counted and counted[-1].record["step"] > step:
            undone.add(id(counted.pop()))

    for start in starts:
        for entry in start.entries:
            if entry.is_step:
                back_to(entry.record["step"] - 1)
                counted.append(entry)
            elif (step := _goes_back_to(entry.record)) is not None:
                back_to(step)
    return undone


def _goes_back_to(event: Record) -> int | None:
    """The step that a start, or a rewind, goes on from."""
    step = event.get("to_step") if event["event"] == Event.REWIND else event.get("step")
    return step if event["event"] in (*STARTS, Event.REWIND) and isinstance(step, int) else None


def between(before: Start, after: Start) -> int:
    """Microseconds from the last record of a start to the start of the next process."""
    if before.boot and after.boot and before.boot[0] == after.boot[0]:
        return max(0, after.boot[1] - before.boot[1] - before.span)
    last = micros_of(before.entries[-1].record, "time")
    return max(0, after.wall_begin - last)


def _number(record: Record) -> int:
    number = record.get("start")
    return number if isinstance(number, int) and number > 0 else 0


def seconds_of(record: Record, key: str) -> float:
    """A number of seconds in a record; 0 where there is none that makes sense."""
    value = record.get(key)
    return float(value) if isinstance(value, int | float) and 0 < value < LONGEST_SECONDS else 0.0


def micros_of(record: Record, key: str) -> int:
    """The same in microseconds."""
    return round(seconds_of(record, key) * MICRO)

"""The ledger: every second of a run, over all its restarts, in exactly one class, from its records alone.

::

    start 1   │start-up│data build│start-up│step│step│save│step│step│✝
                                                           └──┴── recomputed: start 2 goes on from the save
              restart  ─────────────────────────────────────────────►
    start 2                                                          │start-up│step│step│evaluation│step│ stop

A record says how long its activity took, and how old its process was when it was written. So a start is a row of
stretches without holes, each of which ends where a record was written. The time between two of them is start-up before
the first step, and `other` after it. Between two starts lies the time from the last record of the first to the start of
the second: `restart` after a crash, `idle` after a stop on request, `queue` as far as it is known.

Clocks that cannot be set are used where there are any (`bigtrain.base.clock`). Across machines, and in runs from before
these were recorded, the time of day is used; where it goes backwards, no time has passed.

Time is counted in whole microseconds, so that the classes add up exactly.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bigtrain.base import duration
from bigtrain.rundir.events import STARTS, Event
from bigtrain.rundir.metrics_columns import I64
from bigtrain.rundir.starts import (
    MICRO,
    Entry,
    Mask,
    Record,
    Start,
    StartEnd,
    StepRun,
    StepTimes,
    between,
    micros_of,
    seconds_of,
    starts_of,
    undone_of,
)

CLASSES = {
    "training": "steps that count, without their wait for data",
    "recomputed": "steps that a crash or a rewind has undone, and the step that it interrupted",
    "data_stall": "waiting for the loader in steps that count",
    "checkpoint": "training held up by a save",
    "evaluation": "validation loss and samples",
    "start_up": "from the start of the job to the first step: imports, model, checkpoint, dry run",
    "data_build": "of it, opening and indexing the data and making the plan",
    "hang": "no progress, until it was noticed",
    "restart": "from the death of a start, or its last line, to the next process; going back after a rewind",
    "idle": "from a stop on request to the next start",
    "queue": "of it, waiting for machines, as far as the launcher knows",
    "other": "between the steps: records, progress lines, agreeing to stop",
}
"""Every class and what is in it, in the order of a table."""

_TAKES = {
    Event.EVALUATE: ("evaluation", "seconds"),
    Event.SAVE: ("checkpoint", "stall_seconds"),
    Event.COMMIT: ("checkpoint", "waited_seconds"),
    Event.HANG: ("hang", "seconds"),
}
"""The class of the activity of an event, and the key of its seconds."""


LATEST = 1 << 62
"""Microseconds since a run started that no record exceeds: some 146,000 years."""


@dataclass(frozen=True)
class Stretch:
    """A part of a run's time that is of one class, in microseconds since the run started."""

    activity: str
    begin: int
    end: int


class Stretches(Sequence[Stretch]):
    """Stretches without holes, in the order of time: nine bytes each, for a step may have two."""

    def __init__(self) -> None:
        self.activities = array("b")
        """Of each stretch, its position among `CLASSES`."""
        self.ends = array("q")

    def append(self, activity: str, end: int) -> None:
        """Go on to an end; neighbours of the same class are merged."""
        number = _NUMBERS[activity]
        if self.activities and self.activities[-1] == number:
            self.ends[-1] = end
        else:
            self.activities.append(number)
            self.ends.append(end)

    def extend(self, activities: npt.NDArray[np.int8], ends: I64) -> None:
        """Go on to many ends, rising, with the position of each class among `CLASSES`; some may be empty."""
        whole = np.empty(len(ends), np.bool_)
        whole[:1] = ends[:1] > (self.ends[-1] if self.ends else 0)
        np.greater(ends[1:], ends[:-1], out=whole[1:])
        activities, ends = activities[whole], ends[whole]
        last = np.ones(len(ends), np.bool_)  # of equal neighbours
        np.not_equal(activities[1:], activities[:-1], out=last[:-1])
        activities, ends = activities[last], ends[last]
        if len(activities) and self.activities and self.activities[-1] == activities[0]:
            self.activities.pop()
            self.ends.pop()
        self.activities.frombytes(activities.tobytes())
        self.ends.frombytes(ends.tobytes())

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Stretch:  # type: ignore[override]  # no slices
        index = range(len(self))[index]
        return Stretch(_NAMES[self.activities[index]], self.ends[index - 1] if index else 0, self.ends[index])

    def in_columns(self, number: int) -> list[dict[str, int]]:
        """The microseconds of each class in each of so many equal pieces of all time, where there are any."""
        ends = np.array(self.ends, np.int64)
        wall = int(ends[-1]) if len(ends) else 1
        edges = np.array([index * wall // number for index in range(number + 1)], np.int64)
        begins = np.concatenate((np.zeros(1, np.int64), ends[:-1])) if len(ends) else ends
        columns: list[dict[str, int]] = [{} for _ in range(number)]
        activities = np.array(self.activities, np.int8)
        for which in np.unique(activities).tolist():
            own = np.flatnonzero(activities == which)
            before = np.concatenate((np.zeros(1, np.int64), np.cumsum(ends[own] - begins[own])))
            last = begins[own].searchsorted(edges, "left") - 1  # the last stretch that begins before an edge
            known = last >= 0
            upto = np.where(known, before[last] + np.minimum(edges, ends[own][last]) - begins[own][last], 0)
            for index, micros in enumerate(np.diff(upto).tolist()):
                if micros:
                    columns[index][_NAMES[which]] = micros
        return columns


_NAMES = list(CLASSES)
_NUMBERS = {name: number for number, name in enumerate(CLASSES)}


@dataclass(frozen=True)
class LedgerSummary:
    """The ledger of a run in numbers."""

    goodput: float
    """The share of all time that was training which counts."""
    goodput_when_wanted: float
    """The same without the classes idle and queue."""
    wall_seconds: float
    """From the first process, or its job's place in the queue, to the last record."""
    seconds: dict[str, float]
    """Of every class; they add up to `wall_seconds`."""
    starts: int
    crashes: int
    """Starts that another one followed without a stop on request between them."""
    steps_counted: int
    steps_recomputed: int
    """Steps that a crash or a rewind has undone."""
    straggler_seconds: float
    """Of the training, lost to slow ranks, as far as that was detected. No class of its own."""


@dataclass(frozen=True, kw_only=True)
class LedgerTotals:
    """How much time of a run is in each class."""

    micros: dict[str, int]
    """Microseconds of every class."""
    starts: int
    crashes: int
    """Starts that another one followed without a stop on request between them."""
    steps_counted: int
    steps_recomputed: int
    straggler_seconds: float
    """Of the training, lost to slow ranks, as far as that was detected. No class of its own."""

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of every class."""
        return {name: micros / MICRO for name, micros in self.micros.items()}

    @property
    def wall_seconds(self) -> float:
        """From the first process, or its job's place in the queue, to the last record."""
        return sum(self.micros.values()) / MICRO

    @property
    def goodput(self) -> float:
        """The share of all time that was training which counts; 0 where there was no time."""
        return self.seconds["training"] / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def goodput_when_wanted(self) -> float:
        """The same without the classes idle and queue: no start was wanted then, or there was no machine."""
        seconds = self.seconds
        wanted = self.wall_seconds - seconds["idle"] - seconds["queue"]
        return seconds["training"] / wanted if wanted > 0 else 0.0

    def __str__(self) -> str:
        wall = self.wall_seconds or 1.0
        parts = sorted(self.seconds.items(), key=lambda item: -item[1])
        rest = ", ".join(f"{label(name)} {_percent(s / wall)}" for name, s in parts if s and name != "training")
        again = f", {self.steps_recomputed:,} step(s) done in vain" if self.steps_recomputed else ""
        return (
            f"goodput {_percent(self.goodput)} of {duration(self.wall_seconds)} over {self.starts} start(s){again}"
            + (f"; the rest: {rest}" if rest else "")
        )

    def as_summary(self) -> dict[str, float]:
        """For W&B: one flat row."""
        shares = {f"goodput/{name}_seconds": round(seconds, 3) for name, seconds in self.seconds.items()}
        return {
            "goodput": round(self.goodput, 5),
            "goodput_when_wanted": round(self.goodput_when_wanted, 5),
            "goodput/wall_seconds": round(self.wall_seconds, 3),
            **shares,
        }

    def summary(self) -> LedgerSummary:
        """Without the times of its parts."""
        return LedgerSummary(
            goodput=round(self.goodput, 5),
            goodput_when_wanted=round(self.goodput_when_wanted, 5),
            wall_seconds=self.wall_seconds,
            seconds=self.seconds,
            starts=self.starts,
            crashes=self.crashes,
            steps_counted=self.steps_counted,
            steps_recomputed=self.steps_recomputed,
            straggler_seconds=round(self.straggler_seconds, 3),
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self.summary())


@dataclass(frozen=True, kw_only=True)
class Ledger(LedgerTotals):
    """Where the time of a run went."""

    stretches: Stretches
    """In the order of time, without holes."""
    event_times: list[int] = field(default_factory=list)
    """When each event was, in microseconds since the run started, in the order of the file."""


def account(events: Iterable[Record], metrics: StepTimes | Iterable[Record]) -> Ledger:
    """Put every second of a run into one class.

    Args:
        events: the lines of events.jsonl, in order.
        metrics: the lines of metrics.jsonl, in order, those of repeated steps included.
    """
    events = [event for event in events if isinstance(event.get("event"), str)]
    steps = metrics if isinstance(metrics, StepTimes) else StepTimes.of(metrics)
    starts = starts_of(events, steps)
    ends = [start.end for start in starts]
    number = starts_that_count(ends, [start.has_trained for start in starts])
    undone = undone_of(starts[:number], len(steps))
    lines = np.concatenate([np.empty(0, np.int64), *(start.lines for start in starts[:number])])
    last_step = int(steps.steps[lines[~undone[lines]]].max(initial=0))
    book = Book()
    event_times: dict[int, int] = {}
    stragglers = Stragglers()
    for event in events:
        stragglers.add(event)
    for position, start in enumerate(starts[:number]):
        process_began = book.begin(ends[position - 1] if position else None, start)
        for entry in start.entries():
            if isinstance(entry, Entry):
                book.add_event(entry)
                event_times[entry.number] = process_began + entry.age
            else:
                book.add_steps(entry, undone[entry.lines])
        book.end(start)
    return Ledger(
        stretches=book.stretches,
        micros=book.micros,
        starts=sum(event["event"] in STARTS for event in events),
        crashes=sum(not end.stopped for end in ends[: number - 1]) if number else 0,
        steps_counted=len(lines) - int(undone.sum()),
        steps_recomputed=int(undone.sum()),
        straggler_seconds=stragglers.lost_until(last_step),
        event_times=[event_times.get(position, book.now) for position in range(len(events))],
    )


def starts_that_count(ends: Sequence[StartEnd], have_trained: Sequence[bool]) -> int:
    """The number of starts without the last ones that found all steps done."""
    number = len(ends)
    while number > 1 and ends[number - 2].finished and not have_trained[number - 1]:
        number -= 1
    return number


def label(name: str) -> str:
    """The name of a class for people."""
    return name.replace("_", " ")


class Book:
    """Adds one stretch after the other: for each start `begin`, then its records in the order of time, then `end`."""

    def __init__(self) -> None:
        self.stretches = Stretches()
        self.micros = dict.fromkeys(CLASSES, 0)
        self.now = self._process_began = 0
        self._has_stepped = self._goes_back = False

    def begin(self, before: StartEnd | None, start: Start) -> int:
        """The time before a start, up to its first event; returns when its process started."""
        queued, launched = start.recorded("queued_seconds"), start.recorded("before_seconds")
        gap = queued + launched if before is None else between(before, start)
        launched = min(launched, gap)
        queued = min(queued, gap - launched)
        gap -= launched + queued
        if before is not None and before.stopped:
            self._until(self.now + gap, "idle")
        else:
            died = start.recorded("died_seconds")
            self._until(self.now + (gap - died if 0 < died < gap else 0), "recomputed")  # a step that was not done
            self._until(self.now + min(gap, died or gap), "restart")
        self._until(self.now + queued, "queue")
        self._process_began = self.now + launched
        self._until(self._process_began, "start_up")
        self._has_stepped = self._goes_back = False
        phases = start.begin.get("phases")
        if isinstance(phases, dict):
            age = next(entry.age for entry in start.events if entry.record is start.begin)
            for phase in phases:
                activity = "data_build" if phase == "data" else "start_up"
                end = self.now + micros_of(phases, phase)
                self._until(min(end, self._process_began + age), activity)
        return self._process_began

    def add_steps(self, run: StepRun, undone: Mask) -> tuple[I64, I64]:
        """Steps, and the time before each that no record is about. Returns how long each waited for data, and trained,
        should it count."""
        columns = run.start.columns
        ends = np.minimum(np.maximum(self.now, self._process_began + run.ages), LATEST)
        cuts = np.empty((len(ends), 3), np.int64)  # where the step begins, has its data, and ends
        before = np.empty_like(ends)
        before[0], before[1:] = self.now, ends[:-1]
        np.maximum(before, ends - columns.took[run.lines], out=cuts[:, 0])
        np.minimum(cuts[:, 0] + columns.waited[run.lines], ends, out=cuts[:, 1])
        cuts[:, 2] = ends
        activities = np.empty((len(ends), 3), np.int8)
        activities[:] = _NUMBERS["other"], _NUMBERS["data_stall"], _NUMBERS["training"]
        activities[0, 0] = _NUMBERS[self._between_records]
        activities[undone, 1:] = _NUMBERS["recomputed"]
        idle, waited, trained = cuts[:, 0] - before, cuts[:, 1] - cuts[:, 0], ends - cuts[:, 1]
        self.micros[self._between_records] += int(idle[0])
        self.micros["other"] += int(idle[1:].sum())
        for activity, micros in (("data_stall", waited), ("training", trained)):
            lost = int(micros[undone].sum())
            self.micros[activity] += int(micros.sum()) - lost
            self.micros["recomputed"] += lost
        self.stretches.extend(activities.reshape(-1), cuts.reshape(-1))
        self._has_stepped, self._goes_back, self.now = True, False, int(ends[-1])
        return waited, trained

    def add_event(self, entry: Entry) -> None:
        """The activity of an event, and the time before it that no record is about."""
        record = entry.record
        end = max(self.now, self._process_began + entry.age)
        if record["event"] in _TAKES:
            activity, key = _TAKES[record["event"]]
            self._until(max(self.now, end - micros_of(record, key)), self._between_records)
            self._until(end, activity)
        elif record["event"] == Event.NOT_FINITE and self._has_stepped:
            self._until(end, "recomputed")
        elif record["event"] == Event.REWIND:
            self._until(end, self._between_records)
            self._goes_back = True
        # Any other event is an instant, maybe within a step, whose own line comes later and covers all of it.

    def end(self, start: Start) -> None:
        """The start has written its last record."""
        self._until(self._process_began + start.end.span, self._between_records)

    @property
    def _between_records(self) -> str:
        if self._goes_back:
            return "restart"
        return "other" if self._has_stepped else "start_up"

    def _until(self, end: int, activity: str) -> None:
        end = min(end, LATEST)
        if end > self.now:
            self.micros[activity] += end - self.now
            self.stretches.append(activity, end)
            self.now = end


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.2%}"


@dataclass
class Stragglers:
    """Seconds that steps took longer for a slow rank, from its `straggler` event until it had caught up."""

    lost: float = 0.0
    since: int = 0
    """The step up to which they are counted."""
    slow: dict[Any, float] = field(default_factory=dict)
    """Seconds of each slow rank for each step from then on."""

    def add(self, event: Record) -> None:
        """The next event of the run."""
        name, step = event["event"], event.get("step")
        if name not in (Event.STRAGGLER, Event.CAUGHT_UP, *STARTS) or not isinstance(step, int):
            return
        self.lost, self.since = self.lost_until(step), step
        if name in STARTS:
            self.slow.clear()
        elif name == Event.STRAGGLER:
            slower = seconds_of(event, "seconds") - seconds_of(event, "others_seconds")
            self.slow[event.get("rank")] = max(0.0, slower)
        else:
            self.slow.pop(event.get("rank"), None)

    def lost_until(self, step: int) -> float:
        """The seconds up to a step."""
        return self.lost + max(self.slow.values(), default=0.0) * max(0, step - self.since)

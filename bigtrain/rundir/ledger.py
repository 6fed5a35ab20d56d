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

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from bigtrain.base import duration
from bigtrain.rundir.directory import RunDirectory
from bigtrain.rundir.events import STARTS, Event
from bigtrain.rundir.records import read_events, read_metrics_lines
from bigtrain.rundir.starts import (
    MICRO,
    Entry,
    Record,
    Start,
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


@dataclass(frozen=True)
class Stretch:
    """A part of a run's time that is of one class, in microseconds since the run started."""

    activity: str
    begin: int
    end: int


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


@dataclass(frozen=True)
class Ledger:
    """Where the time of a run went."""

    stretches: list[Stretch]
    """In the order of time, without holes; neighbours of the same class are merged."""
    micros: dict[str, int]
    """Microseconds of every class."""
    starts: int
    crashes: int
    """Starts that another one followed without a stop on request between them."""
    steps_counted: int
    steps_recomputed: int
    straggler_seconds: float
    """Of the training, lost to slow ranks, as far as that was detected. No class of its own."""
    step_times: dict[int, int] = field(default_factory=dict)
    """When each step that counts was done, in microseconds since the run started."""
    event_times: list[int] = field(default_factory=list)
    """The same for each event, in the order of the file."""

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of every class."""
        return {name: micros / MICRO for name, micros in self.micros.items()}

    @property
    def wall_seconds(self) -> float:
        """From the first process, or its job's place in the queue, to the last record."""
        return self.stretches[-1].end / MICRO if self.stretches else 0.0

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


def account(events: Iterable[Record], metrics: Iterable[Record]) -> Ledger:
    """Put every second of a run into one class.

    Args:
        events: the lines of events.jsonl, in order.
        metrics: the lines of metrics.jsonl, in order, those of repeated steps included.
    """
    events = [event for event in events if isinstance(event.get("event"), str)]
    starts = starts_of(events, [record for record in metrics if isinstance(record.get("step"), int)])
    while len(starts) > 1 and starts[-2].finished and not starts[-1].has_trained:
        del starts[-1]  # a start that found all steps done
    undone = undone_of(starts)
    book = _Book()
    event_times: dict[int, int] = {}
    step_times: dict[int, int] = {}
    before: Start | None = None
    for start in starts:
        process_began = book.begin(before, start)
        before = start
        for entry in start.entries:
            book.add(entry, undone)
            at = process_began + entry.age
            if entry.number >= 0:
                event_times[entry.number] = at
            elif id(entry) not in undone:
                step_times[entry.record["step"]] = at
        book.end(start)
    steps = sum(entry.is_step for start in starts for entry in start.entries)
    return Ledger(
        stretches=book.stretches,
        micros=book.micros,
        starts=sum(event["event"] in STARTS for event in events),
        crashes=sum(not start.stopped for start in starts[:-1]),
        steps_counted=steps - len(undone),
        steps_recomputed=len(undone),
        straggler_seconds=_lost_to_stragglers(events, max(step_times, default=0)),
        step_times=step_times,
        event_times=[event_times.get(number, book.now) for number in range(len(events))],
    )


def account_of(directory: RunDirectory) -> Ledger:
    """The ledger of a run, from its records so far."""
    return account(read_events(directory.events), read_metrics_lines(directory.metrics))


def label(name: str) -> str:
    """The name of a class for people."""
    return name.replace("_", " ")


class _Book:
    """Adds one stretch after the other."""

    def __init__(self) -> None:
        self.stretches: list[Stretch] = []
        self.micros = dict.fromkeys(CLASSES, 0)
        self.now = self._process_began = 0
        self._has_stepped = self._goes_back = False

    def begin(self, before: Start | None, start: Start) -> int:
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
            age = next(entry.age for entry in start.entries if entry.record is start.begin)
            for phase in phases:
                activity = "data_build" if phase == "data" else "start_up"
                end = self.now + micros_of(phases, phase)
                self._until(min(end, self._process_began + age), activity)
        return self._process_began

    def add(self, entry: Entry, undone: set[int]) -> None:
        """The activity of a record, and the time before it that no record is about."""
        record = entry.record
        end = max(self.now, self._process_began + entry.age)
        if entry.is_step:
            step, wait = micros_of(record, "step_seconds"), micros_of(record, "data_seconds")
            begin = max(self.now, end - step)
            self._until(begin, self._between_records)
            self._has_stepped, self._goes_back = True, False
            if id(entry) not in undone:
                self._until(min(begin + wait, end), "data_stall")
            self._until(end, "recomputed" if id(entry) in undone else "training")
            return
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
        self._until(self._process_began + start.span, self._between_records)

    @property
    def _between_records(self) -> str:
        if self._goes_back:
            return "restart"
        return "other" if self._has_stepped else "start_up"

    def _until(self, end: int, activity: str) -> None:
        if end <= self.now:
            return
        self.micros[activity] += end - self.now
        if self.stretches and self.stretches[-1].activity == activity:
            self.stretches[-1] = Stretch(activity, self.stretches[-1].begin, end)
        else:
            self.stretches.append(Stretch(activity, self.now, end))
        self.now = end


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.2%}"


def _lost_to_stragglers(events: Iterable[Record], last_step: int) -> float:
    """Seconds that steps took longer for a slow rank, from its `straggler` event until it had caught up."""
    lost, since, slow = 0.0, 0, dict[Any, float]()
    for event in events:
        if event["event"] not in (Event.STRAGGLER, Event.CAUGHT_UP, *STARTS) or not isinstance(event.get("step"), int):
            continue
        lost += max(slow.values(), default=0.0) * max(0, event["step"] - since)
        since = event["step"]
        if event["event"] in STARTS:
            slow.clear()
        elif event["event"] == Event.STRAGGLER:
            slow[event.get("rank")] = max(0.0, seconds_of(event, "seconds") - seconds_of(event, "others_seconds"))
        else:
            slow.pop(event.get("rank"), None)
    return lost + max(slow.values(), default=0.0) * max(0, last_step - since)

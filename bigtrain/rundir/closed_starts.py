"""RUN/ledger.jsonl: a line for each start that another one followed, so that the ledger of a long run is a short sum.

::

    events.jsonl    │ start 1 │ start 2 │ start 3 ...       read from the end of the last closed start on
    metrics.jsonl   │ start 1     │ start 2    │ start 3 ...
    ledger.jsonl      line 1        line 2

A line is a cache and never an authority. It has a checksum over the line before it, over every byte of its start's
records, and over itself. Where that differs, where a later record is of an earlier start, or where a version did not
number its records, the lines from there on are worked out again from the records.

A line never changes, although a later start may undo steps of an earlier one. It has the sums up to each checkpoint of
its start, and starts go back to checkpoints. If one went back to another step, that line is worked out again.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from typing_extensions import TypedDict

from bigtrain.base import BigtrainError, as_record, write_atomically
from bigtrain.rundir.directory import RunDirectory
from bigtrain.rundir.events import STARTS, Event
from bigtrain.rundir.json_lines import read_json_lines, whole_lines, written_to
from bigtrain.rundir.ledger import CLASSES, LATEST, Book, LedgerTotals, Stragglers, account, starts_that_count
from bigtrain.rundir.metrics_columns import I64, read_metrics_columns
from bigtrain.rundir.records import event_of, read_events
from bigtrain.rundir.starts import (
    Entry,
    Mask,
    Numbering,
    Record,
    Start,
    StartEnd,
    StepTimes,
    goes_back_to,
    read_step_times,
    starts_of,
    undone_of,
)

logger = logging.getLogger(__name__)

PIECE = 1 << 20
"""Bytes that are hashed at once."""


@dataclass(frozen=True)
class CountedSteps:
    """The steps of a start that its own rewinds left, in order, with the sums up to each."""

    steps: I64
    lines: I64
    """How many of them there are up to each."""
    waited: I64
    """Microseconds that they waited for data."""
    trained: I64
    is_complete: bool
    """Whether each step is there; else only some."""

    @classmethod
    def of(cls, steps: I64, waited: I64, trained: I64) -> CountedSteps:
        """Those of all steps, with what each took."""
        return cls(steps, np.arange(1, len(steps) + 1), np.cumsum(waited), np.cumsum(trained), is_complete=True)

    def until(self, index: int) -> tuple[int, int, int]:
        """The sums up to a step that is there: lines, waited, trained. All are 0 for index -1."""
        if index < 0:
            return 0, 0, 0
        return int(self.lines[index]), int(self.waited[index]), int(self.trained[index])

    def last_until(self, step: int) -> int | None:
        """The index of the last step up to this one; -1: none. None where a step is not there that may be that one."""
        index = int(self.steps.searchsorted(step, "right")) - 1
        exact = self.is_complete or index in (-1, len(self.steps) - 1) or self.steps[index] == step
        return index if exact else None

    def thinned(self, kept: set[int]) -> CountedSteps:
        """The same with some of the steps only, and the one before the first, and the last."""
        if not len(self.steps):
            return replace(self, is_complete=False)
        chosen = np.isin(self.steps, list(kept))
        chosen[-1] = True

        def with_first(first: int, values: I64) -> I64:
            return np.concatenate((np.array([first], np.int64), values[chosen]))

        return CountedSteps(
            with_first(int(self.steps[0]) - 1, self.steps),
            with_first(0, self.lines),
            with_first(0, self.waited),
            with_first(0, self.trained),
            is_complete=False,
        )


@dataclass
class StartAccount:
    """One start in the ledger, as if no later one had gone back before its end."""

    number: int
    micros: dict[str, int]
    """Of every class, with the time since the start before."""
    lines: int
    """Its lines of metrics.jsonl."""
    counted: CountedSteps
    goes_back_to: int | None
    """The lowest step that it went back to."""
    end: StartEnd

    @property
    def has_trained(self) -> bool:
        """Whether it has done a step."""
        return self.lines > 0


class _Sums(TypedDict):
    steps: list[int]
    lines: list[int]
    waited: list[int]
    trained: list[int]


class _End(TypedDict):
    boot: tuple[str, int] | None
    span: int
    time: int
    stopped: bool
    finished: bool


class _Slow(TypedDict):
    lost: float
    since: int
    slow: list[tuple[Any, float]]


@dataclass(frozen=True, kw_only=True)
class ClosedStart:
    """A line of ledger.jsonl."""

    start: int
    """The number of the start."""
    format: Literal[1] = 1
    """Another version's lines are not used: its classes may be others."""
    events: int
    """Where its events end in events.jsonl, in bytes."""
    metrics: int
    """The same for metrics.jsonl."""
    begun: int
    """How many starts there were by then."""
    micros: dict[str, int]
    lines: int
    counted: _Sums
    goes_back_to: int | None
    end: _End
    stragglers: _Slow
    """How it was by then."""
    checksum: str = ""

    @classmethod
    def of(cls, account: StartAccount, saved: set[int], begun: int, stragglers: Stragglers, ends: _Ends) -> ClosedStart:
        """The line for a start, without its checksum."""
        counted = account.counted.thinned(saved)
        return cls(
            start=account.number,
            events=ends.events,
            metrics=ends.metrics,
            begun=begun,
            micros=account.micros,
            lines=account.lines,
            counted={
                "steps": counted.steps.tolist(),
                "lines": counted.lines.tolist(),
                "waited": counted.waited.tolist(),
                "trained": counted.trained.tolist(),
            },
            goes_back_to=account.goes_back_to,
            end=asdict(account.end),  # type: ignore[arg-type]
            stragglers={
                "lost": stragglers.lost,
                "since": stragglers.since,
                "slow": list(stragglers.slow.items()),
            },
        )

    def account(self) -> StartAccount:
        """What it says of its start."""
        sums = {name: np.array(values, np.int64) for name, values in self.counted.items()}
        boot = self.end["boot"]
        end = StartEnd(**{**self.end, "boot": None if boot is None else (boot[0], boot[1])})  # type: ignore[arg-type]
        counted = CountedSteps(**sums, is_complete=False)
        return StartAccount(self.start, self.micros, self.lines, counted, self.goes_back_to, end)

    def content(self) -> bytes:
        """What the checksum covers of the line itself."""
        return json.dumps({**vars(self), "checksum": ""}, sort_keys=True).encode()


@dataclass(frozen=True)
class _Ends:
    """Where the records of a start end, in bytes."""

    events: int = 0
    metrics: int = 0


def account_of(directory: RunDirectory, *, keep: bool = False) -> LedgerTotals:
    """How much time of a run is in each class, from its records so far.

    Args:
        directory: the run.
        keep: write the lines of closed starts that ledger.jsonl lacks. Only for the process that owns the run.
    """
    closed = list(_valid_lines(directory))
    while True:
        open_starts = _OpenStarts.read(directory, closed)
        if open_starts is None and closed:
            closed = []  # records of an earlier start were added, or some have no number
            continue
        if open_starts is None:
            return account(read_events(directory.events), read_step_times(directory.metrics))
        accounts = [*(line.account() for line in closed), *open_starts.accounts]
        totals, unknown = _sum(accounts, open_starts)
        if unknown is not None:
            closed = closed[:unknown]
            continue
        if totals is None:
            return account(read_events(directory.events), read_step_times(directory.metrics))
        if keep and len(open_starts.accounts) > 1:
            try:
                _write(directory, closed, open_starts.closed)
            except BigtrainError as error:  # the records are enough
                logger.warning(f"{error.what}: {error.found}")
        return totals


def _sum(accounts: Sequence[StartAccount], rest: _OpenStarts) -> tuple[LedgerTotals | None, int | None]:
    """The sum of all starts, with the steps that later ones undid moved to `recomputed`.

    Returns:
        The totals, None where the times are too long for them; and the position of a start which does not know what a
        later one undid of it.
    """
    number = starts_that_count([each.end for each in accounts], [each.has_trained for each in accounts])
    accounts = accounts[:number]
    micros = dict.fromkeys(CLASSES, 0)
    standing: list[tuple[int, int]] = []
    """Of each start of which steps are left: its position, and the index of the last of them."""
    counted = 0
    for position, each in enumerate(accounts):
        for name, value in each.micros.items():
            micros[name] += value
        while standing and each.goes_back_to is not None:
            of, last = standing[-1]
            steps = accounts[of].counted
            if steps.steps[last] <= each.goes_back_to:
                break
            index = steps.last_until(each.goes_back_to)
            if index is None:
                return None, of
            all_sums, sums = steps.until(last), steps.until(index)
            lines, waited, trained = (a - b for a, b in zip(all_sums, sums, strict=True))
            counted -= lines
            micros["data_stall"] -= waited
            micros["training"] -= trained
            micros["recomputed"] += waited + trained
            standing.pop()
            if sums[0]:
                standing.append((of, index))
                break
        if len(each.counted.steps):
            standing.append((position, len(each.counted.steps) - 1))
            counted += int(each.counted.lines[-1])
    if sum(micros.values()) >= LATEST:
        return None, None
    last_step = int(accounts[standing[-1][0]].counted.steps[standing[-1][1]]) if standing else 0
    totals = LedgerTotals(
        micros=micros,
        starts=rest.begun,
        crashes=sum(not each.end.stopped for each in accounts[:-1]),
        steps_counted=counted,
        steps_recomputed=sum(each.lines for each in accounts) - counted,
        straggler_seconds=rest.stragglers.lost_until(max(0, last_step)),
    )
    return totals, None


@dataclass
class _OpenStarts:
    """The starts after the closed ones, from their records."""

    accounts: list[StartAccount]
    closed: list[ClosedStart]
    """Lines for all of them but the last, without checksums."""
    begun: int
    stragglers: Stragglers
    """As it is at the end of the records."""

    @classmethod
    def read(cls, directory: RunDirectory, closed: Sequence[ClosedStart]) -> _OpenStarts | None:
        """Read the rest of the records. None where they do not follow the closed starts, start by start."""
        last = closed[-1] if closed else None
        numbering = Numbering(last.begun, last.start) if last else Numbering()
        events, event_ends = _events_from(directory.events, last.events if last else 0)
        parts, step_ends = [], array("q")
        for some in read_metrics_columns(directory.metrics, begin=last.metrics if last else 0):
            parts.append(StepTimes.of_columns(some))
            step_ends.frombytes(some.ends.tobytes())
        columns = StepTimes.joined(parts)
        begun = Numbering(numbering.begun, numbering.current)
        numbers = [n for event in events if (n := begun.of(event)) is not None]
        before = last.start if last else 0
        if not _rises(numbers, before) or not _rises(columns.starts.tolist(), before):
            return None
        starts = starts_of(events, columns, numbering)
        found = cls([], [], begun.begun, _stragglers_after(last))
        previous, count = (last.account().end, last.begun) if last else (None, 0)
        ends, done = _Ends(last.events, last.metrics) if last else _Ends(), 0
        undone = np.zeros(len(columns), np.bool_)
        for start in starts:  # each alone
            undone |= undone_of([start], len(columns))
        for position, start in enumerate(starts):
            each = _account(previous, start, undone)
            found.accounts.append(each)
            previous = each.end
            upto = start.events[-1].number + 1 if start.events else done
            for event in events[done:upto]:
                found.stragglers.add(event)
                count += event["event"] in STARTS
            done = upto
            ends = _Ends(
                event_ends[upto - 1] if start.events else ends.events,
                step_ends[int(start.lines[-1])] if start.has_trained else ends.metrics,
            )
            if position < len(starts) - 1:
                found.closed.append(ClosedStart.of(each, _saved(start), count, found.stragglers, ends))
        for event in events[done:]:
            found.stragglers.add(event)
        return found


def _stragglers_after(last: ClosedStart | None) -> Stragglers:
    """The stragglers at the end of a closed start."""
    if last is None:
        return Stragglers()
    known = last.stragglers
    return Stragglers(known["lost"], known["since"], dict(known["slow"]))


def _account(before: StartEnd | None, start: Start, undone: Mask) -> StartAccount:
    book, lowest = Book(), None
    steps, waited, trained = ([np.empty(0, np.int64)] for _ in range(3))
    book.begin(before, start)
    for entry in start.entries():
        step = goes_back_to(entry)
        if step is not None and (lowest is None or step < lowest):
            lowest = step
        if isinstance(entry, Entry):
            book.add_event(entry)
        else:
            counts = ~undone[entry.lines]
            times = book.add_steps(entry, ~counts)
            for column, values in zip((steps, waited, trained), (entry.steps, *times), strict=True):
                column.append(values[counts])
    book.end(start)
    counted = CountedSteps.of(np.concatenate(steps), np.concatenate(waited), np.concatenate(trained))
    return StartAccount(start.number, book.micros, len(start.lines), counted, lowest, start.end)


def _saved(start: Start) -> set[int]:
    """The steps that another start may go on from."""
    saves = (entry.record for entry in start.events if entry.record["event"] in (Event.SAVE, Event.COMMIT))
    return {save["step"] for save in saves if isinstance(save.get("step"), int)}


def _events_from(path: Path, begin: int) -> tuple[list[Record], array[int]]:
    """The events from a byte on, and where the line of each ends."""
    events: list[Record] = []
    ends = array("q")
    for line, end in whole_lines(path, begin):
        if (event := event_of(line)) is not None:
            events.append(event)
            ends.append(end)
    return events, ends


def _rises(numbers: Sequence[int], before: int) -> bool:
    """Whether numbers of starts are higher than that of the start before, and none is lower than the one before it."""
    highest = before + 1
    for number in numbers:
        if number < highest:
            return False
        highest = number
    return True


def _valid_lines(directory: RunDirectory) -> Iterator[ClosedStart]:
    """The lines of ledger.jsonl up to the first that is not of the records as they are."""
    before: ClosedStart | None = None
    for value in read_json_lines(directory.ledger):
        try:
            line = as_record(ClosedStart, value, directory.ledger)
            follows = before is None or (
                before.start < line.start and before.events <= line.events and before.metrics <= line.metrics
            )
            lengths = {len(sums) for sums in (line.counted.values())}  # type: ignore[arg-type]
            whole = len(lengths) == 1 and line.micros.keys() == CLASSES.keys() and line.account() is not None
        except (BigtrainError, OverflowError):
            return
        if not follows or not whole or line.checksum != _checksum(directory, before, line):
            return
        yield line
        before = line


def _checksum(directory: RunDirectory, before: ClosedStart | None, line: ClosedStart) -> str:
    """Of a line, of the records that it is about, and of the line before it, which has the start that came before."""
    found = xxhash.xxh3_128(line.content())
    if before is not None:
        found.update(before.checksum.encode())
    for path, begin, end in (
        (directory.events, before.events if before else 0, line.events),
        (directory.metrics, before.metrics if before else 0, line.metrics),
    ):
        if begin == end:
            continue
        try:
            with path.open("rb") as file:
                file.seek(begin)
                while begin < end and (piece := file.read(min(PIECE, end - begin))):
                    found.update(piece)
                    begin += len(piece)
        except FileNotFoundError:
            pass
        found.update(str(begin).encode())  # where the file ends before
    return found.hexdigest()


def _write(directory: RunDirectory, closed: Sequence[ClosedStart], new: Sequence[ClosedStart]) -> None:
    """Write the file again: the lines that were there and were right, and new ones."""
    lines = list(closed)
    for line in new:
        before = lines[-1] if lines else None
        lines.append(replace(line, checksum=_checksum(directory, before, line)))
    with written_to(directory.ledger):
        write_atomically(directory.ledger, "".join(json.dumps(vars(line)) + "\n" for line in lines))

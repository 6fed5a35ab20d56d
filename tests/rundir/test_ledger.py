"""Every second of a run, over all its restarts, is in one class of the ledger, whatever happens to run and clock."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bigtrain.rundir import closed_starts
from bigtrain.rundir.closed_starts import account_of
from bigtrain.rundir.counted_seconds import CountedSeconds
from bigtrain.rundir.directory import RunDirectory
from bigtrain.rundir.json_lines import JsonLines, read_json_lines
from bigtrain.rundir.ledger import CLASSES, Ledger, account
from bigtrain.rundir.records import read_events, read_metrics_lines
from bigtrain.rundir.starts import MICRO, number_of_next_start

MS = 1000


@dataclass
class History:
    """A run that is played through: what it writes down, and where its time really went."""

    old: bool = False
    """Of a version that wrote only the time of day."""
    events: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    spent: list[tuple[str, int, int]] = field(default_factory=list)
    """Class, microseconds, step (0: none)."""
    now: int = 0
    clock_is_off: int = 0
    born: int = 0
    start: int = 0
    step: int = 0

    def spend(self, activity: str, milliseconds: int, step: int = 0) -> float:
        self.now += milliseconds * MS
        self.spent.append((activity, milliseconds * MS, step))
        return milliseconds / 1000

    def write(self, to: list[dict[str, Any]], record: dict[str, Any]) -> None:
        times = {"time": (self.now + self.clock_is_off) / MICRO + 1.7e9}
        if not self.old:
            times |= {"start": self.start, "uptime": (self.now - self.born) / MICRO}
        to.append({**record, **times})

    def event(self, event: str, **details: Any) -> None:
        self.write(self.events, {"event": event, "step": self.step, **details})

    def begin(self, step: int, launcher: int, imports: int, data: int, model: int, boot: str = "a") -> None:
        self.start += 1
        self.spend("start_up", launcher)
        self.born = self.now
        phases = {"imports": self.spend("start_up", imports), "data": self.spend("data_build", data)}
        phases["model"] = self.spend("start_up", model)
        self.step = step
        age = (self.now - self.born) / MICRO
        clock = {"boot_id": boot, "boot_seconds": self.now / MICRO, "process_seconds": age}
        details = {} if self.old else {"phases": phases, "clock": {**clock, "before_seconds": launcher / 1000}}
        self.event("resume" if step else "start", **details)
        self.spend("start_up", 3)

    def train(self, wait: int, work: int) -> None:
        self.step += 1
        data = self.spend("data_stall", wait, self.step)
        step = data + self.spend("training", work, self.step)
        self.write(self.metrics, {"step": self.step, "step_seconds": step, "data_seconds": data})
        self.spend("other", 1)


def seconds(ledger: Ledger) -> dict[str, float]:
    return {name: value for name, value in ledger.seconds.items() if value}


def is_whole(ledger: Ledger) -> None:
    """The classes add up to the whole to the last microsecond, and no instant is in two or in none."""
    ends = [0, *(stretch.end for stretch in ledger.stretches)]
    assert [stretch.begin for stretch in ledger.stretches] == ends[:-1]
    assert all(stretch.end > stretch.begin for stretch in ledger.stretches)
    assert sum(ledger.micros.values()) == ends[-1]
    assert ledger.wall_seconds == ends[-1] / MICRO
    for name in CLASSES:
        assert ledger.micros[name] == sum(s.end - s.begin for s in ledger.stretches if s.activity == name)
    assert 0 <= ledger.goodput <= 1 and 0 <= ledger.goodput_when_wanted <= 1


def two_starts(old: bool = False, jump_seconds: int = 0) -> History:
    """Killed in step 6, resumed from the save of step 3, stopped on request, finished by a third start."""
    run = History(old=old)
    run.begin(0, launcher=4000, imports=6000, data=500, model=2000)
    for _ in range(5):
        run.train(wait=10, work=990)
        if run.step == 3:
            run.event("save", stall_seconds=run.spend("checkpoint", 40))
    run.spend("restart", 12_700)  # 700 ms of it were a sixth step: nobody has written down when it died
    run.clock_is_off += jump_seconds * MICRO
    run.begin(3, launcher=0, imports=6000, data=500, model=2500)
    for _ in range(3):
        run.train(wait=20, work=980)
    run.event("evaluate", seconds=run.spend("evaluation", 1500))
    run.event("save", stall_seconds=run.spend("checkpoint", 50))
    run.event("commit", seconds=9.9, waited_seconds=run.spend("checkpoint", 250))
    run.event("stop", reason="SIGTERM", exit_status=75)
    run.spend("idle", 60_000)
    run.clock_is_off -= 2 * jump_seconds * MICRO
    run.begin(6, launcher=4000, imports=6000, data=500, model=2000)
    run.train(wait=0, work=1000)
    run.event("hang", seconds=run.spend("hang", 30_000))
    run.spend("restart", 5000)
    run.begin(6, launcher=0, imports=6000, data=500, model=2000)
    run.train(wait=0, work=1000)
    run.event("stop", reason="all steps done", exit_status=0)
    return run


@pytest.mark.parametrize("jump_seconds", [0, 3600, -86_400])
def test_the_ledger_is_right_even_when_the_clock_is_set(jump_seconds: int) -> None:
    """A history of crashes, stops and hangs has the right classes, even where the clock is set meanwhile."""
    run = two_starts(jump_seconds=jump_seconds)
    ledger = account(run.events, run.metrics)
    is_whole(ledger)
    assert seconds(ledger) == pytest.approx(
        {
            "training": 3 * 0.99 + 3 * 0.98 + 1,
            "data_stall": 3 * 0.01 + 3 * 0.02,
            "recomputed": 2 * 1 + 1,  # steps 4 and 5 of the first start, step 7 of the third
            "checkpoint": 0.04 + 0.3,
            "evaluation": 1.5,
            "start_up": 4 + 8.003 + 8.503 + 4 + 8.003 + 8.003,
            "data_build": 4 * 0.5,
            "hang": 30,
            "restart": 12.7 + 0.001 + 5,
            "idle": 60,
            "other": 0.001 * (5 + 3 + 1 + 1 - 1),
        },
        abs=1e-6,
    )
    assert (ledger.starts, ledger.crashes, ledger.steps_counted, ledger.steps_recomputed) == (4, 2, 7, 3)
    assert ledger.wall_seconds == pytest.approx(run.now / MICRO)
    assert ledger.goodput == pytest.approx(ledger.seconds["training"] / (run.now / MICRO))
    assert ledger.goodput_when_wanted > ledger.goodput
    assert len(ledger.event_times) == len(run.events)


def test_a_run_from_before_there_was_a_ledger_has_one_all_the_same() -> None:
    old, new = (account(run.events, run.metrics) for run in (two_starts(old=True), two_starts()))
    is_whole(old)
    for name in ("training", "recomputed", "data_stall", "checkpoint", "evaluation", "hang"):
        assert old.seconds[name] == pytest.approx(new.seconds[name], abs=1e-6)
    assert old.seconds["data_build"] == 0  # not recorded: what came before the first event is in the gap before it
    assert old.seconds["idle"] == pytest.approx(60 + 4 + 8.5)


def test_steps_that_a_later_start_went_back_before_are_lost() -> None:
    """Steps that a later start went back before count as recomputed, even before they are done again."""
    run = History()
    run.begin(0, 0, 1000, 0, 0)
    for _ in range(4):
        run.train(0, 1000)
    run.begin(1, 0, 1000, 0, 0)
    ledger = account(run.events, run.metrics)
    assert ledger.seconds["recomputed"] == 3 and ledger.seconds["training"] == 1
    run.train(0, 1000)
    assert account(run.events, run.metrics).seconds["recomputed"] == 3


def test_going_back_before_a_spike_is_lost_work_and_a_restart() -> None:
    run = History()
    run.begin(0, 0, 1000, 0, 0)
    for _ in range(4):
        run.train(0, 1000)
    run.event("spike", passed=False)
    run.event("rewind", to_step=2)
    run.spend("restart", 300)
    run.event("evidence")
    assert account(run.events, run.metrics).seconds["recomputed"] == 2
    run.step = 2
    run.train(0, 1000)
    ledger = account(run.events, run.metrics)
    is_whole(ledger)
    assert ledger.seconds["training"] == 3 and ledger.seconds["recomputed"] == 2
    assert ledger.seconds["restart"] == pytest.approx(0.3)


def test_an_event_within_a_step_takes_nothing_from_it() -> None:
    run = History()
    run.begin(0, 0, 1000, 0, 0)
    run.train(0, 1000)
    run.spend("training", 700)
    run.event("overflow")
    run.now -= 700 * MS
    run.train(0, 1000)
    ledger = account(run.events, run.metrics)
    is_whole(ledger)
    assert ledger.seconds["training"] == 2


def test_the_cost_of_a_straggler_counts_until_it_has_caught_up() -> None:
    """Seconds that a straggler costs count from its first event until it has caught up."""
    run = History()
    run.begin(0, 0, 1000, 0, 0)
    for step in range(1, 11):
        run.train(0, 1000)
        if step == 4:
            run.event("straggler", rank=1, seconds=0.5, others_seconds=0.3)
        if step == 9:
            run.event("straggler caught up", rank=1, seconds=0.3, others_seconds=0.3)
    assert account(run.events, run.metrics).straggler_seconds == pytest.approx(0.2 * 5)


def test_the_step_that_a_crash_broke_off_is_lost_where_the_launcher_saw_it() -> None:
    run = History()
    run.begin(0, 0, 1000, 0, 0)
    run.train(0, 1000)
    run.spend("recomputed", 700)
    run.spend("restart", 4000)
    run.begin(0, 0, 1000, 0, 0)
    run.events[-1]["clock"]["died_seconds"] = 4.0
    ledger = account(run.events, run.metrics)
    is_whole(ledger)
    assert ledger.seconds["restart"] == 4.0
    assert ledger.seconds["recomputed"] == pytest.approx(1.7, abs=0.002)


def test_queue_time_is_what_the_launcher_recorded_between_starts() -> None:
    """Of the time between two starts, what the launcher recorded as queued is in the class queue."""
    run = History()
    run.begin(0, 0, 1000, 0, 0)
    run.train(0, 1000)
    run.event("stop", reason="SIGUSR1", exit_status=75)
    run.spend("idle", 100_000)
    run.begin(1, 0, 1000, 0, 0)
    run.train(0, 1000)
    for start, queued in zip([run.events[0], run.events[-1]], (5.0, 80.0), strict=True):
        start["clock"]["queued_seconds"] = queued
    ledger = account(run.events, run.metrics)
    is_whole(ledger)
    assert ledger.seconds["queue"] == 85 and ledger.seconds["idle"] == pytest.approx(20, abs=0.01)


def test_a_look_at_a_finished_run_adds_nothing_to_it() -> None:
    run = two_starts()
    before = account(run.events, run.metrics).as_dict()
    run.spend("idle", 10**9)
    run.begin(7, 0, 1000, 0, 0)
    run.event("stop", reason="all steps done", exit_status=0)
    after = account(run.events, run.metrics).as_dict()
    assert {**after, "starts": 4} == before


NUMBERS = st.one_of(st.integers(-5, 10**6), st.floats(), st.none(), st.just("x"))
KINDS = ("start", "resume", "save", "commit", "evaluate", "hang", "rewind", "spike", "fallback", "stop", "straggler")
STAMPS = {"time": NUMBERS, "uptime": NUMBERS, "start": NUMBERS}
EVENTS = st.fixed_dictionaries(
    {"event": st.sampled_from(KINDS)},
    optional={**STAMPS, "step": NUMBERS, "seconds": NUMBERS, "stall_seconds": NUMBERS,
              "phases": st.dictionaries(st.just("data"), NUMBERS),
              "clock": st.dictionaries(st.sampled_from(["boot_id", "boot_seconds", "before_seconds"]), NUMBERS)},
)  # fmt: skip
STEPS = st.fixed_dictionaries(
    {"step": st.integers(1, 9)}, optional={**STAMPS, "step_seconds": NUMBERS, "data_seconds": NUMBERS}
)


@given(events=st.lists(EVENTS, max_size=12), steps=st.lists(STEPS, max_size=12))
@example(events=[], steps=[{"step": 1, "time": 1.7e302}])  # more microseconds than a float can hold
def test_every_second_is_in_one_class_whatever_the_records_hold(
    events: list[dict[str, Any]], steps: list[dict[str, Any]]
) -> None:
    """Whatever the records hold, no second is in two classes or in none."""
    is_whole(account(events, steps))


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Starts that train, save, evaluate, hang, rewind, crash or stop, under a clock that is set now and then."""
    run, milliseconds, saved = History(), st.integers(0, 5000), 0
    for _ in range(draw(st.integers(1, 4))):
        run.clock_is_off += draw(st.sampled_from([0, 0, 3600, -7200])) * MICRO
        run.begin(saved, *(draw(milliseconds) for _ in range(4)))
        for _ in range(draw(st.integers(0, 6))):
            run.train(draw(milliseconds), draw(milliseconds))
            match draw(st.sampled_from(["on", "on", "save", "evaluate"])):
                case "save":
                    run.event("save", stall_seconds=run.spend("checkpoint", draw(milliseconds)))
                    saved = run.step
                case "evaluate":
                    run.event("evaluate", seconds=run.spend("evaluation", draw(milliseconds)))
        match draw(st.sampled_from(["crash", "stop", "hang"])):
            case "stop":
                run.event("stop", reason="SIGTERM", exit_status=75)
                run.spend("idle", draw(milliseconds))
                continue
            case "hang":
                run.event("hang", seconds=run.spend("hang", draw(milliseconds)))
        run.spend("restart", draw(milliseconds))
    run.begin(saved, *(draw(milliseconds) for _ in range(4)))
    run.train(1, 1)
    run.event("stop", reason="all steps done", exit_status=0)
    return run


@given(run=histories())
def test_every_history_is_told_as_it_was(run: History) -> None:
    ledger = account(run.events, run.metrics)
    is_whole(ledger)
    assert ledger.wall_seconds == pytest.approx(run.now / MICRO, abs=1e-3)
    truth: dict[str, float] = dict.fromkeys(CLASSES, 0.0)
    lowest = 10**9
    for activity, micros, step in reversed(run.spent):  # a step counts where none behind it begins before it
        truth["recomputed" if step and step >= lowest else activity] += micros / MICRO
        if step and activity == "data_stall":
            lowest = min(lowest, step)
    slack = 0.004 * len(run.spent)  # the millisecond behind the last record of a start belongs to what comes after it
    for name in CLASSES:
        assert ledger.seconds[name] == pytest.approx(truth[name], abs=slack), name


@given(run=histories(), cut=st.data())
def test_lines_that_a_kill_has_torn_leave_no_hole(run: History, cut: st.DataObject) -> None:
    kept = [[record for record in records if cut.draw(st.integers(0, 5))] for records in (run.events, run.metrics)]
    is_whole(account(*kept))


@st.composite
def long_histories(draw: st.DrawFn) -> History:
    """Starts that go back to a save, to any step, or to the first; rewinds; slow ranks; kills at any time."""
    run, milliseconds, saved = History(), st.integers(0, 3000), [0]
    for _ in range(draw(st.integers(2, 6))):
        before = draw(st.sampled_from([saved[-1], saved[-1], draw(st.sampled_from(saved)), draw(st.integers(0, 9))]))
        run.begin(before, *(draw(milliseconds) for _ in range(4)), boot=draw(st.sampled_from("ab")))
        for _ in range(draw(st.integers(0, 8))):
            run.train(draw(milliseconds), draw(milliseconds))
            match draw(st.sampled_from(["on", "on", "save", "lost save", "rewind", "slow", "caught up", "hang"])):
                case "save":
                    run.event("commit", waited_seconds=run.spend("checkpoint", draw(milliseconds)))
                    saved.append(run.step)
                case "lost save":
                    saved.append(run.step)
                case "rewind":
                    run.event("rewind", to_step=draw(st.sampled_from(saved)), decision=1)
                    run.step = run.events[-1]["to_step"]
                case "slow":
                    run.event("straggler", rank=draw(st.integers(0, 2)), seconds=0.5, others_seconds=0.3)
                case "caught up":
                    run.event("straggler caught up", rank=draw(st.integers(0, 2)))
                case "hang":
                    run.event("hang", seconds=run.spend("hang", draw(milliseconds)))
                    if draw(st.booleans()):  # a rank that does not know the number of the start
                        del run.events[-1]["start"]
        if draw(st.booleans()):
            run.event("stop", reason="SIGTERM", exit_status=draw(st.sampled_from([0, 75])))
        run.spend("restart", draw(milliseconds))
    return run


def test_a_ledger_of_sums_is_that_of_all_records(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The lines of closed starts give the same ledger as all records, whatever starts and rewinds went back to."""

    @given(run=long_histories(), cut=st.data())
    def told_the_same(run: History, cut: st.DataObject) -> None:
        directory = RunDirectory(tmp_path_factory.mktemp("run"))
        seen = sorted({record["start"] for record in run.metrics} | {1})
        for upto in seen:  # the end of each start, as far as it has one
            written = [
                [record for record in records if record.get("start", 0) <= upto]
                for records in (run.events, run.metrics)
            ]
            for path, records in zip((directory.events, directory.metrics), written, strict=True):
                path.write_text("".join(json.dumps({"loss": 1.0, **record}) + "\n" for record in records))
            whole = account(read_events(directory.events), read_metrics_lines(directory.metrics)).as_dict()
            assert account_of(directory, keep=cut.draw(st.booleans())).as_dict() == whole
            assert account_of(directory).as_dict() == whole

    told_the_same()


@pytest.mark.parametrize("change", ["a byte of a record", "a byte of a line", "a shorter file", "a late record"])
def test_a_line_of_the_ledger_counts_only_for_its_records(tmp_path: Path, change: str) -> None:
    """Where records or lines changed afterwards, the ledger is that of the records as they are now."""
    directory, run = RunDirectory(tmp_path), two_starts()
    for path, records in ((directory.events, run.events), (directory.metrics, run.metrics)):
        path.write_text("".join(json.dumps({"loss": 1.0, **record}) + "\n" for record in records))
    account_of(directory, keep=True)
    assert len(directory.ledger.read_text().splitlines()) == 3
    if change == "a byte of a record":
        directory.metrics.write_text(
            directory.metrics.read_text().replace('"step_seconds": 1.0', '"step_seconds": 0.7')
        )
    elif change == "a byte of a line":
        directory.ledger.write_text(directory.ledger.read_text().replace('"training": ', '"training": 1'))
    elif change == "a shorter file":
        directory.metrics.write_text("".join(directory.metrics.read_text().splitlines(keepends=True)[:3]))
    else:
        with directory.metrics.open("a") as file:
            file.write(json.dumps({**run.metrics[-1], "loss": 1.0, "start": 1}) + "\n")
    now = account(read_events(directory.events), read_metrics_lines(directory.metrics)).as_dict()
    assert account_of(directory).as_dict() == now
    assert account_of(directory, keep=True).as_dict() == now


def test_a_ledger_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The end of a start does not fail for a file that can be worked out again."""
    directory, run = RunDirectory(tmp_path), two_starts()
    for path, records in ((directory.events, run.events), (directory.metrics, run.metrics)):
        path.write_text("".join(json.dumps({"loss": 1.0, **record}) + "\n" for record in records))
    directory.ledger.mkdir()
    assert account_of(directory, keep=True).steps_counted == 7
    assert "ledger.jsonl cannot be written" in caplog.text


def test_closed_starts_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the lines of all closed starts, only the records of the last start are parsed."""
    directory, run = RunDirectory(tmp_path), two_starts()
    for path, records in ((directory.events, run.events), (directory.metrics, run.metrics)):
        path.write_text("".join(json.dumps({"loss": 1.0, **record}) + "\n" for record in records))
    account_of(directory, keep=True)
    begins: list[int] = []
    real = closed_starts.read_metrics_columns
    monkeypatch.setattr(
        closed_starts, "read_metrics_columns", lambda path, *, begin: begins.append(begin) or real(path, begin=begin)
    )
    account_of(directory)
    assert directory.metrics.read_bytes()[begins[0] :].count(b"\n") == 1 < len(run.metrics)


def test_the_newest_line_alone_tells_how_much_training_counts(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"

    def start(steps: range, seconds: float) -> None:
        counted, lines = CountedSeconds(metrics), JsonLines(metrics, 1)
        for step in steps:
            lines.append(
                {"step": step, "loss": 1, "step_seconds": seconds, CountedSeconds.KEY: counted.after(step, seconds)}
            )

    start(range(1, 11), 1.0)
    start(range(6, 9), 2.0)
    counted = CountedSeconds(metrics)
    assert counted.after(9, 0.5) == 5 + 3 * 2 + 0.5
    assert counted.after(3, 0.25) == 2.25  # a rewind within the process
    lines = [{k: v for k, v in r.items() if k != CountedSeconds.KEY} for r in read_json_lines(metrics)]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert CountedSeconds(metrics).after(9, 0.5) == 5 + 3 * 2 + 0.5  # of a version that did not write it


def test_a_start_has_a_number_of_its_own() -> None:
    assert number_of_next_start([]) == 1
    assert number_of_next_start([{"event": "start"}, {"event": "resume"}, {"event": "stop"}]) == 3
    assert number_of_next_start([{"event": "start", "start": 1}, {"event": "fallback", "start": 2}]) == 3

"""Whatever stands in a run's records, its readers give numbers or one message, in bounded time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigtrain.base import BigtrainError
from bigtrain.report import write_report
from bigtrain.rundir import account, account_of, read_decisions, read_events, read_metrics, read_metrics_lines
from bigtrain.rundir.directory import RunDirectory
from bigtrain.rundir.records import metrics_of_step, newest_metrics
from bigtrain.rundir.runs import state_of
from bigtrain.train.continuation import standing_commits
from bigtrain.train.save_interval import failure_history, mean_time_between_failures
from tests.golden.before import BEFORE
from tests.refusals import assert_refused

STRANGE: list[Any] = [
    None, True, -1, 0, 1.5, 2**53 + 1, 10**30, 10**400, -(10**400), 1e302, -1e302, float("nan"), float("inf"), "", "9",
    "\x1b[31m", [], [[]], {}, {"a": {"b": []}}, [{"source": "x"}], ["a"] * 1000,
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real run of an earlier version, without its checkpoints."""
    root = tmp_path_factory.mktemp("records") / "run"
    shutil.copytree(BEFORE / "run", root, ignore=shutil.ignore_patterns("checkpoints"))
    yield root


def lines_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (BEFORE / "run" / name).read_text().splitlines()]


@st.composite
def damaged(draw: st.DrawFn, name: str) -> str:
    """The lines of a real file, with some fields changed, removed or renamed, and some lines cut or repeated."""
    lines = []
    for record in lines_of(name):
        for key in draw(st.lists(st.sampled_from(sorted(record)), max_size=2, unique=True)):
            match draw(st.integers(0, 3)):
                case 0:
                    del record[key]
                case 1:
                    record["\ud800" + key] = record.pop(key)
                case _:
                    record[key] = draw(st.sampled_from(STRANGE))
        line = json.dumps(record)
        lines.append(draw(st.sampled_from([line, line, line, line[: len(line) // 2], f"{line}\n{line}", "[" * 3000])))
    return "\n".join(lines) + draw(st.sampled_from(["", "\n"]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metrics=damaged("metrics.jsonl"), events=damaged("events.jsonl"))
def test_readers_give_numbers_whatever_stands_in_the_records(run: Path, metrics: str, events: str) -> None:
    directory = RunDirectory(run)
    directory.metrics.write_text(metrics)
    directory.events.write_text(events)
    ledger = account(read_events(directory.events), read_metrics_lines(directory.metrics))
    assert sum(ledger.micros.values()) == (ledger.stretches[-1].end if ledger.stretches else 0)
    assert account_of(directory, keep=True).as_dict() == account_of(directory).as_dict() == ledger.as_dict()
    assert 0 <= state_of(directory).step <= 2**53
    history = failure_history(read_events(directory.events))
    assert mean_time_between_failures(history, 1) > 0
    for read in (lambda: standing_commits(read_events(directory.events), read_decisions(directory.decisions)),
                 lambda: directory.newest(), lambda: write_report(run)):  # fmt: skip
        try:
            read()
        except BigtrainError as refusal:
            assert_refused(refusal)


@given(decisions=damaged("decisions.jsonl"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_decision_is_one_message(tmp_path: Path, decisions: str) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_text(decisions)
    try:
        read_decisions(path)
    except BigtrainError as refusal:
        assert_refused(refusal, str(path))


def test_a_field_of_another_type_is_left_out(tmp_path: Path) -> None:
    """The rest of its line stays; a line without what readers need is skipped, as a torn one is."""
    good = {"step": 1, "loss": 2.0, "tokens": 5, "time": 1.0}
    path = tmp_path / "metrics.jsonl"
    strange = [{**good, "tokens": "many", "time": 1e302, "later": {"a": 1}}, {**good, "step": 2.0}, {"step": 3}, [], 7]
    path.write_text("".join(json.dumps(line) + "\n" for line in strange))
    assert list(read_metrics_lines(path)) == [{"step": 1, "loss": 2.0, "later": {"a": 1}}]
    events = tmp_path / "events.jsonl"
    wrong: list[Any] = [
        {"event": "commit", "step": -1},
        {"event": "evaluate", "step": 1, "validation": [{"source": "a", "loss": "low"}]},
        {"event": "rewind"},
        {"event": 7},
        {"event": "stop", "step": None, "exit_status": "none"},
        {"event": "of a later version", "step": 4},
    ]
    events.write_text("".join(json.dumps(line) + "\n" for line in wrong))
    assert list(read_events(events)) == [{"event": "stop"}, {"event": "of a later version", "step": 4}]


def test_the_newest_line_of_the_right_types_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines: list[dict[str, Any]] = [{"step": step, "loss": float(step)} for step in (1, 2, 3)]
    lines[2]["loss"] = "low"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert newest_metrics(path) == lines[1] == read_metrics(path)[-1]
    assert metrics_of_step(path, 3) is None


def test_a_line_without_an_end_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.write(b'{"step": 1, "loss": 1.0}\n{"step": 2, "loss": ')
        file.truncate(200 << 20)  # zeros, as a file system leaves them where the power failed
    assert [record["step"] for record in read_metrics_lines(path)] == [1]

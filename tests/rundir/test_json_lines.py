"""metrics.jsonl and events.jsonl survive a kill at any byte."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.rundir.json_lines import JsonLines, read_json_lines
from bigtrain.rundir.records import metrics_of_step, newest_metrics, read_metrics
from tests.refusals import assert_refused


def test_records_come_back_in_order(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    for step in range(5):
        lines.append({"step": step, "loss": 1 / (step + 1)})
    lines.close()
    assert [r["step"] for r in read_json_lines(tmp_path / "m.jsonl")] == list(range(5))
    assert all("time" in r for r in read_json_lines(tmp_path / "m.jsonl"))


def test_a_full_disk_is_reported_with_its_remedy():
    with pytest.raises(BigtrainError, match=r"/dev/full cannot be written\n.*No space left on device(.|\n)*free space"):
        JsonLines(Path("/dev/full")).append({"step": 1})


@given(cut=st.integers(min_value=0, max_value=200))
def test_a_kill_in_the_middle_of_a_line_loses_that_line_only(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("records") / "m.jsonl"
    lines = JsonLines(path)
    for step in range(4):
        lines.append({"step": step})
    lines.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    survivors = [r["step"] for r in read_json_lines(path)]
    assert survivors == list(range(len(survivors)))

    lines = JsonLines(path)
    lines.append({"step": 99})
    lines.close()
    assert [r["step"] for r in read_json_lines(path)] == [*survivors, 99]


def test_a_repeated_step_counts_with_its_last_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": v}) + "\n" for s, v in [(1, 5), (2, 4), (3, 3), (2, 40)]))
    assert [(r["step"], r["loss"]) for r in read_metrics(path)] == [(1, 5), (2, 40), (3, 3)]


def test_a_missing_file_has_no_lines(tmp_path):
    assert list(read_json_lines(tmp_path / "none.jsonl")) == []


def test_one_step_is_found_without_reading_the_file_through(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert newest_metrics(path) is None and metrics_of_step(path, 1) is None
    path.touch()
    assert newest_metrics(path) is None
    lines = JsonLines(path)
    for step in (1, 2, 3, 4, 10, 2, 3):  # the second start went back to step 1
        lines.append({"step": step, "loss": step + path.stat().st_size})
        assert newest_metrics(path) == list(read_json_lines(path))[-1]
    for record in read_metrics(path):
        assert metrics_of_step(path, record["step"]) == record
    assert metrics_of_step(path, 5) is None and metrics_of_step(path, 100) is None


def test_a_torn_line_is_passed_over_when_one_step_is_looked_for(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    lines.append({"step": 1, "loss": 1.0})
    lines.append({"step": 2, "loss": 2.0})
    lines.close()
    whole = path.read_bytes()
    for size in range(whole.index(b"\n") + 1, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert newest_metrics(path)["step"] == 1
        assert metrics_of_step(path, 2) is None and metrics_of_step(path, 1)["loss"] == 1.0
    JsonLines(path).append({"step": 2, "loss": 3.0})
    assert newest_metrics(path)["loss"] == metrics_of_step(path, 2)["loss"] == 3.0


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.jsonl")
    with pytest.raises(BigtrainError) as refusal:
        JsonLines(tmp_path / "events.jsonl")
    assert_refused(refusal, "events.jsonl", found="a pipe")

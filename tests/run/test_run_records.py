"""metrics.jsonl and events.jsonl survive a kill at any byte."""

import json

from hypothesis import given
from hypothesis import strategies as st

from bigtrain.run.records import JsonLines, read_json_lines, read_metrics


def test_records_come_back_in_order(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    for step in range(5):
        lines.append({"step": step, "loss": 1 / (step + 1)})
    lines.close()
    assert [r["step"] for r in read_json_lines(tmp_path / "m.jsonl")] == list(range(5))
    assert all("time" in r for r in read_json_lines(tmp_path / "m.jsonl"))


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

"""metrics.jsonl in columns: the same numbers as line by line, whatever stands in it."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigtrain.report.step_columns import NUMBERS, ReadSteps
from bigtrain.rundir import TIMES, json_lines, metrics_columns, read_metrics_columns, read_metrics_lines, step_of
from bigtrain.rundir.json_lines import whole_lines
from tests.rundir.test_records import damaged, lines_of

NAMES = (*TIMES, *NUMBERS)
GOOD = b'{"step": 7, "loss": 2.5, "tokens": 3, "start": 1, "time": 5.5, "uptime": 0.25, "later": "a"}\n'


def assert_as_line_by_line(path: Path) -> None:
    """The columns of a file are those of its records."""
    records = list(read_metrics_lines(path))
    blocks = list(read_metrics_columns(path, NAMES))
    assert sum(map(len, blocks)) == len(records)
    for name in metrics_columns.COUNTS:
        found = [value for block in blocks for value in block.counts[name].tolist()]
        assert found == [record.get(name, 0) for record in records], name
    for name in NAMES:
        numbers = [value for block in blocks for value in block.numbers[name].tolist()]
        wanted = [float(record.get(name, "nan")) for record in records]
        assert np.array_equal(numbers, wanted, equal_nan=True), name
    content = path.read_bytes()
    ends = [end for block in blocks for end in block.ends.tolist()]
    of_ends = [step_of(content[content.rfind(b"\n", 0, end - 1) + 1 : end]) for end in ends]
    assert repr(of_ends) == repr(records)
    for block in blocks:
        assert (block.highest < 0) == (block.last_line == b"")
        assert not block.last_line or (step_of(block.last_line) or {})["step"] == block.highest


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=damaged("metrics.jsonl"), block=st.sampled_from([1, 700, 1 << 20]))
def test_columns_are_those_of_the_lines_one_by_one(tmp_path: Path, text: str, block: int) -> None:
    """Blocks of one line each put each damaged line before the parser of many lines."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "BLOCK_BYTES", block)
        assert_as_line_by_line(path)


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1, "loss": NaN}', '{"step": 1, "loss": -NaN}', '{"step": 1, "loss": Infinity}',
        '{"step": 1, "loss": Inf}', '{"step": 1, "loss": 2.0, "x": Inf}', '{"step": 1, "loss": 1e400}',
        '{"step": 1, "loss": 1e-400}', '{"step": 1, "loss": 1e308, "mfu": 1e302}', '{"step": 1, "loss": null}',
        '{"step": null, "loss": 2.0}', '{"step": 1, "loss": 2.0, "time": NaN}', '{"step": 1, "loss": 2.0, "time": -1}',
        '{"step": 1, "loss": 2, "uptime": null}', '{"step": 1.0, "loss": 2.0}', '{"step": true, "loss": 2.0}',
        '{"step": "1", "loss": 2.0}', '{"step": -1, "loss": 2.0}', '{"step": 9007199254740993, "loss": 2.0}',
        '{"step": 9223372036854775808, "loss": 2.0}', '{"step": 1, "step": 2, "loss": 2.0}',
        '{"step": 1, "loss": 2.0}{"step": 2, "loss": 2.0}', '{"step": 1, "loss": 2.0,}', '{"step": 01, "loss": 2.0}',
        '{"step": 1, "loss": 2.0, "x": "\\ud800"}', '{"step": 1, "loss": 2.0, "x": "a\tb"}', '{"step": 1, "loss": 2.0',
        '{"step": 1, "loss": 2.0, "x": {"step": 3}}', '{"step": 1, "loss": 2.0, "x": [1, {}]}', "", "{}", "[]", "\x00",
        '{"step": 1, "loss": 2.0, "x": "é"}', '{"step": 1, "loss": 2.0, "x": "}{"}', '{"step": 1,\n"loss": 2.0}',
        '{"step": 1, "loss": ' + "9" * 400 + "}", '{"step": 1, "loss": 2.0, "x": ' + "9" * 5000 + "}",
        '{"step": 1, "loss": 2.0, "x": ' + "[" * 3000 + "]" * 3000 + "}", '\ufeff{"step": 1, "loss": 2.0}',
        ' {"step": 1, "loss": 2.0}', '{"step": 1, "loss": 2.0}\r', '{"\\u0073tep": 1, "loss": 2.0}',
    ],
)  # fmt: skip
def test_a_line_that_is_not_plain_reads_as_ever(tmp_path: Path, line: str) -> None:
    """Alone, and between two good ones, whose numbers stay."""
    path = tmp_path / "metrics.jsonl"
    for content in (f"{line}\n".encode(), GOOD + f"{line}\n".encode() + GOOD, GOOD + line.encode()):
        path.write_bytes(content)
        assert_as_line_by_line(path)


def test_lines_as_training_writes_them_are_parsed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that lacks a field, or whose loss is no number, does not send the others the slow way."""
    path = tmp_path / "metrics.jsonl"
    lines = [{**record, "grad_norm": 1.0, "step": n} for n, record in enumerate(lines_of("metrics.jsonl"), 1)]
    lines.append({key: value for key, value in lines[0].items() if key != "mfu"} | {"loss": float("nan")})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(metrics_columns, "_line_by_line", None)
    (columns,) = read_metrics_columns(path, NAMES)
    assert columns.counts["step"].tolist() == [line["step"] for line in lines]
    assert json.loads(columns.last_line)["step"] == columns.highest == len(lines) - 1


def test_the_last_line_of_the_highest_step_is_kept_whole(tmp_path: Path) -> None:
    """Of a step that was done twice, the second line counts, as in the loss curve."""
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "loss": float(place)} for place, step in enumerate((1, 2, 1, 2, 1))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps, times = ReadSteps.read(path)
    assert steps.last == lines[3] and times.steps.tolist() == [1, 2, 1, 2, 1]
    assert steps.counted.points("loss").tolist() == [[1, 4], [2, 3]] and len(steps.undone) == 3


def test_a_million_steps_take_a_few_hundred_bytes_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No record of a line outlives its block: the peak is that of the columns, and of one copy of the widest."""
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", 1 << 16)
    path, number = tmp_path / "metrics.jsonl", 20_000
    path.write_bytes(b"".join(GOOD.replace(b"7", b"%d" % step) for step in range(number)))
    ReadSteps.read(path)  # imports
    tracemalloc.start()
    ReadSteps.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * number


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=12),
    end=st.booleans(),
    block=st.integers(1, 9),
    begin=st.integers(0, 3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_do_not_depend_on_where_a_block_ends(
    tmp_path: Path, lines: list[bytes], end: bool, block: int, begin: int
) -> None:
    """Each line comes with the byte after it; one that is too long is skipped, with a newline or without."""
    content = b"\n".join(lines) + (b"\n" if end else b"")
    path = tmp_path / "lines"
    path.write_bytes(content)
    begin = sum(len(line) + 1 for line in lines[:begin])
    wanted, at = [], begin
    while at < len(content):
        after = content.find(b"\n", at) + 1 or len(content)
        line = content[at:after]
        if len(line) < 10 or (line.endswith(b"\n") and len(line) == 10):
            wanted.append((line, after))
        at = after
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "BLOCK_BYTES", block)
        patch.setattr(json_lines, "LONGEST_LINE", 10)
        assert list(whole_lines(path, begin)) == wanted

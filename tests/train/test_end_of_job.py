"""A walltime that is over, unknown or malformed is reported once and ignored; threads that are no number likewise."""

import time

import pytest

from bigtrain.base import environment
from bigtrain.engine import topology
from bigtrain.train.end_of_job import END_TIME, EndOfJob


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(environment, "_said", set())
    for name in (*END_TIME, "RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", END_TIME)
@pytest.mark.parametrize("value", ["Unknown", "", "abc", "-1", "1e999", "nan", "past", "milliseconds"])
def test_a_walltime_that_cannot_be_true_never_ends_a_run(name, value, monkeypatch, capsys):
    times = {"past": str(time.time() - 7200), "milliseconds": str(time.time() * 1000)}
    monkeypatch.setenv(name, times.get(value, value))
    assert not any(EndOfJob().is_near(1e9, 1e9) for _ in range(2))
    assert capsys.readouterr().err.count(f"warning: {name}=") == (1 if value else 0)


def test_the_next_source_counts_where_the_first_cannot_be_true(monkeypatch):
    monkeypatch.setenv(END_TIME[0], "Unknown")
    monkeypatch.setenv(END_TIME[1], str(time.time() + 1000))
    end, started = EndOfJob(), time.monotonic()
    assert not end.is_near(1e9, 1e9)
    monkeypatch.setattr(time, "monotonic", lambda: started + 900)
    assert end.is_near(1e9, 1e9)


@pytest.mark.parametrize(
    ("value", "threads"), [("3", 3), ("3,2", 3), ("abc", None), ("-1", None), ("", None), ("0", None)]
)
def test_a_number_of_threads_is_taken_or_ignored_with_a_line(value, threads, monkeypatch, capsys):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share = topology._threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert topology._threads(1) == (threads or share)
    assert ("OMP_NUM_THREADS" in capsys.readouterr().err) == (value in ("abc", "-1"))

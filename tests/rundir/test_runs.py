"""`bigtrain runs` says how every run is, without reading any through."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from bigtrain.base.errors import BigtrainError
from bigtrain.report.report import write_report
from bigtrain.rundir.directory import RunDirectory
from bigtrain.rundir.runs import list_runs, state_of
from tests.report.helpers import STEPS, Pen, eventful_run


def test_every_run_below_a_folder_is_listed_with_its_state(tmp_path: Path) -> None:
    eventful_run(tmp_path / "team" / "done")
    crashed, stopped, running = (Pen(tmp_path / name) for name in ("crashed", "stopped", "running"))
    for pen in (crashed, stopped, running):
        pen.begin(0)
        pen.train(30)
    stopped.event("stop", reason="SIGTERM", exit_status=75)
    (crashed.run / "checkpoints" / "step-00000025").mkdir(parents=True)
    (crashed.run / "checkpoints" / "step-00000025" / "manifest.json").write_bytes(b"x" * 1000)
    (crashed.run / "checkpoints" / "step-00000025" / "rank-00000.safetensors").write_bytes(b"x" * 24)
    (tmp_path / "no run").mkdir()
    with (running.run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = {Path(state.run).name: state for state in list_runs(tmp_path)}
    assert {name: state.state for name, state in found.items()} == {
        "done": "finished", "crashed": "crashed", "stopped": "stopped", "running": "running",
    }  # fmt: skip
    assert state_of(RunDirectory(running.run)).state == "crashed"  # once nobody holds the lock
    assert (found["done"].step, found["done"].total_steps) == (STEPS, STEPS)
    assert (found["crashed"].step, found["crashed"].total_steps) == (30, STEPS)
    assert (found["crashed"].checkpoints, found["crashed"].checkpoint_bytes) == (1, 1024)
    assert found["stopped"].last_event == "stop" and found["crashed"].last_event == "commit"
    assert found["done"].loss is not None and found["done"].tokens_per_second is not None


def test_its_goodput_is_the_ledger_s(tmp_path: Path) -> None:
    run = Pen(tmp_path / "run")
    run.begin(0)
    run.train(60)
    run.now += 40
    run.counted = sum_of_steps(run, 50)
    run.begin(50)
    run.train(STEPS)
    run.event("stop", reason="all steps done", exit_status=0)
    assert state_of(RunDirectory(run.run)).goodput == pytest.approx(write_report(run.run).ledger.goodput, abs=1e-3)


def sum_of_steps(run: Pen, last: int) -> float:
    from bigtrain.rundir.records import metrics_of_step

    record = metrics_of_step(run.run / "metrics.jsonl", last)
    assert record is not None
    return float(record["counted_seconds"])


def test_hundreds_of_long_runs_are_listed_at_once(tmp_path: Path) -> None:
    one = eventful_run(tmp_path / "run-000")
    line = (one / "metrics.jsonl").read_bytes().splitlines(keepends=True)[-1]
    with (one / "metrics.jsonl").open("ab") as file:
        for _ in range(100):
            file.write(line * 1000)
    for number in range(1, 200):  # two hundred runs of a hundred thousand steps, on the disk once
        other = tmp_path / f"run-{number:03d}"
        other.mkdir()
        for name in ("config.yaml", "metrics.jsonl", "events.jsonl"):
            os.link(one / name, other / name)
    began = time.monotonic()
    assert len(list_runs(tmp_path)) == 200
    assert time.monotonic() - began < 60  # to parse them would take minutes


def test_a_folder_that_is_not_there_is_said() -> None:
    with pytest.raises(BigtrainError, match="is no folder"):
        list_runs(Path("/nowhere/at/all"))


@pytest.mark.parametrize("name", ["config.yaml", "events.jsonl", "metrics.jsonl", ".lock"])
def test_a_pipe_among_the_files_of_a_run_holds_no_listing_up(tmp_path: Path, name: str) -> None:
    """Nobody may write into it, and a reader would wait for ever."""
    run = eventful_run(tmp_path / "run")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "run" / name)
    assert run is not None and [Path(status.run).name for status in list_runs(tmp_path)] == ["run"]

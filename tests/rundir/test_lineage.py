"""A copy of a run is a branch, and a run that was moved is itself; whatever the records of other versions say."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from bigtrain.rundir import RunDirectory, RunState
from bigtrain.rundir.lineage import Parent, parent_of


def run_with(root: Path, **start: Any) -> RunDirectory:
    directory = RunDirectory(root)
    root.mkdir()
    event = {"event": "start", "step": 0, "wandb_run_id": "aa", "time": 1.5, "run_dir": str(root), **start}
    directory.events.write_text(json.dumps({name: value for name, value in event.items() if value}) + "\n")
    return directory


def history(directory: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in directory.events.read_text().splitlines()]


def copied(directory: RunDirectory, root: Path) -> RunDirectory:
    shutil.copytree(directory.root, root)
    return RunDirectory(root)


def test_a_copy_is_a_branch_while_the_original_is_there(tmp_path: Path) -> None:
    original = run_with(tmp_path / "a")
    copy = copied(original, tmp_path / "b")
    assert parent_of(copy, history(copy), 4, RunState()) == Parent(str(tmp_path / "a"), 4, "aa")
    assert parent_of(original, history(original), 4, RunState()) is None


def test_a_run_that_was_moved_is_the_same_run(tmp_path: Path) -> None:
    original = run_with(tmp_path / "a")
    shutil.move(original.root, tmp_path / "b")
    moved = RunDirectory(tmp_path / "b")
    assert parent_of(moved, history(moved), 4, RunState()) is None
    run_with(tmp_path / "a", time=9.0)  # another run where it was
    assert parent_of(moved, history(moved), 4, RunState()) is None


def test_a_run_seen_by_another_path_is_the_same_run(tmp_path: Path) -> None:
    original = run_with(tmp_path / "a", run_dir=str(tmp_path / "link"))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert parent_of(original, history(original), 4, RunState()) is None


@pytest.mark.parametrize(
    ("state", "step", "parent"),
    [
        (RunState(wandb_run_id="aa", run_dir="/runs/a"), 4, Parent("/runs/a", 4, "aa")),
        (RunState(run_dir="/runs/a"), 4, Parent("/runs/a", 4, None)),
        (RunState(wandb_run_id="aa"), 4, Parent(None, 4, "aa")),  # of an earlier version
        (RunState(), 4, None),
        (RunState(wandb_run_id="aa", run_dir="/runs/a"), 0, None),
    ],
)
def test_a_checkpoint_in_a_new_folder_says_whose_it_is(
    tmp_path: Path, state: RunState, step: int, parent: Parent | None
) -> None:
    assert parent_of(RunDirectory(tmp_path), [], step, state) == parent


def test_a_run_that_lost_its_records_is_the_same_run(tmp_path: Path) -> None:
    state = RunState(wandb_run_id="aa", run_dir=str(tmp_path.resolve()))
    assert parent_of(RunDirectory(tmp_path), [], 4, state) is None


def test_a_run_of_an_earlier_version_goes_on_as_itself(tmp_path: Path) -> None:
    original = run_with(tmp_path / "a", run_dir=None)
    copy = copied(original, tmp_path / "b")
    assert parent_of(copy, history(copy), 4, RunState(wandb_run_id="aa")) is None


def test_a_pipe_where_the_original_was_is_no_run_and_not_waited_for(tmp_path: Path) -> None:
    original = run_with(tmp_path / "a")
    copy = copied(original, tmp_path / "b")
    original.events.unlink()
    os.mkfifo(original.events)
    assert parent_of(copy, history(copy), 4, RunState()) is None

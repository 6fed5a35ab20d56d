"""Whether a start is of the run that it was before, or of a branch: a run of its own that began as a copy of another.

    a new folder with a checkpoint of another run      a branch; the checkpoint says whose it is
    a folder that was copied with its records          a branch, while the original is still where it was
    a folder that was moved or renamed                 the same run

A branch has a W&B run of its own, and records its parent in its first event and in W&B's config. W&B's own forks need
W&B's count of what was logged, which is not the step of the training and is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigtrain.rundir.directory import RunDirectory
from bigtrain.rundir.events import STARTS
from bigtrain.rundir.run_state import RunState

FIRST_LINE_BYTES = 1 << 16


@dataclass(frozen=True)
class Parent:
    """The run that a branch began as a copy of."""

    run_dir: str | None
    """Null where an earlier version wrote the checkpoint, which does not say."""
    step: int
    """The step that the branch goes on from."""
    wandb_run_id: str | None

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def parent_of(
    directory: RunDirectory, history: Iterable[Mapping[str, Any]], step: int, state: RunState
) -> Parent | None:
    """The parent of a run that becomes a branch with this start; None where it is no branch, or has long been one.

    Args:
        directory: of the run.
        history: its events so far.
        step: the step that it goes on from.
        state: what the checkpoint of this step says.
    """
    root = str(directory.root.resolve())
    starts = [event for event in history if event["event"] in STARTS]
    if starts:
        before = starts[-1].get("run_dir")
        if before is None or before == root or not _is_copy(directory, RunDirectory(Path(before))):
            return None
        return Parent(before, step, remembered_run_id(starts))
    if step == 0 or state.run_dir == root or (state.run_dir is None and state.wandb_run_id is None):
        return None
    return Parent(state.run_dir, step, state.wandb_run_id)


def remembered_run_id(events: Iterable[Mapping[str, Any]]) -> str | None:
    """The id of the last start's W&B run, even if that start was killed before its first save; None if none."""
    known = [event["wandb_run_id"] for event in events if event.get("wandb_run_id")]
    return known[-1] if known else None


def _is_copy(directory: RunDirectory, original: RunDirectory) -> bool:
    """Whether two folders hold records that begin alike, and are not the same folder."""
    try:
        if directory.root.samefile(original.root):
            return False
        first = [_first_line(each.events) for each in (directory, original)]
    except (OSError, ValueError):
        return False
    return first[0] == first[1] != b""


def _first_line(path: Path) -> bytes:
    if not path.is_file():  # a pipe would be waited for; the records name the folder
        return b""
    with path.open("rb") as file:
        return file.readline(FIRST_LINE_BYTES)

"""A checkpoint.dir belongs to one run, which may be moved."""

import shutil
from pathlib import Path

import pytest

from bigtrain.base.errors import BigtrainError
from bigtrain.config.settings import CheckpointSettings
from bigtrain.rundir.directory import RunDirectory
from bigtrain.train.ownership import RECORD, claim_checkpoints
from tests.refusals import assert_refused


def claim(run: Path, folder: Path) -> None:
    run.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    claim_checkpoints(RunDirectory(run), CheckpointSettings(dir=str(folder)))


def refused(run: Path, folder: Path) -> pytest.ExceptionInfo[BigtrainError]:
    with pytest.raises(BigtrainError) as error:
        claim(run, folder)
    return error


def test_a_second_run_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    claim(tmp_path / "first", folder)
    claim(tmp_path / "first", folder)  # its next start
    error = refused(tmp_path / "second", folder)
    assert_refused(error, f"checkpoint.dir {folder}", found=f"{tmp_path}/first", fix="another checkpoint.dir")


def test_a_run_that_was_moved_goes_on_and_its_copy_does_not(tmp_path: Path) -> None:
    folder, first, moved, copy = (tmp_path / name for name in ("kept", "first", "moved", "copy"))
    claim(first, folder)
    first.rename(moved)
    claim(moved, folder)
    shutil.copytree(moved, copy)
    assert_refused(refused(copy, folder), found=str(moved))
    (tmp_path / "link").symlink_to(moved)
    claim(tmp_path / "link", folder)  # another name of the same run
    folder.rename(tmp_path / "elsewhere")
    claim(moved, tmp_path / "elsewhere")


def test_a_folder_without_the_record_is_taken(tmp_path: Path) -> None:
    """Folders of earlier versions have none; a run directory that was lost is made again at the same path."""
    folder, run = tmp_path / "kept", tmp_path / "run"
    claim(run, folder)
    (folder / RECORD).unlink()
    claim(tmp_path / "other", folder)
    shutil.rmtree(tmp_path / "other")
    claim(tmp_path / "other", folder)


def test_a_record_that_is_damaged_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    claim(tmp_path / "run", folder)
    (folder / RECORD).write_text("{}")
    assert_refused(refused(tmp_path / "run", folder), RECORD)

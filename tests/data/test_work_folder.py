"""A work folder has whole files or none, on a disk and at a URL."""

from __future__ import annotations

import pickle
import threading
import uuid
from pathlib import Path

import pytest

from bigtrain.data.format.work_folder import LocalFolder, WorkFolder


@pytest.fixture(params=["disk", "url"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> WorkFolder:
    return WorkFolder.at(tmp_path / "work" if request.param == "disk" else f"memory://{uuid.uuid4().hex}/work")


def test_what_is_written_is_read_listed_and_removed(folder: WorkFolder) -> None:
    assert folder.names() == [] and not folder.exists("a/1")
    folder.write("a/1", b"one")
    folder.write("a/2", memoryview(b"two"), durable=False)
    folder.below("b").write("3", b"three")
    assert folder.names() == ["a/1", "a/2", "b/3"] and folder.names("a/") == folder.names("a") == ["a/1", "a/2"]
    assert (folder.read("b/3"), folder.read("a/1", 1), folder.read("b/3", 1, 3)) == (b"three", b"ne", b"hr")
    folder.write("a/1", b"again")
    assert folder.read("a/1") == b"again" and folder.exists("a/1")
    folder.remove("a/1")
    folder.remove("a/1")
    assert folder.names() == ["a/2", "b/3"]
    with pytest.raises(FileNotFoundError):
        folder.read("a/1")
    folder.below("a").clear()
    assert folder.names() == ["b/3"]
    folder.clear()
    folder.clear()
    assert folder.names() == []


def test_a_file_that_fails_half_way_is_not_there(folder: WorkFolder) -> None:
    with pytest.raises(KeyError), folder.create("file") as file:
        file.write(b"half")
        raise KeyError
    assert not folder.exists("file") and folder.names() == []
    with folder.create("file") as file:
        file.write(b"who")
        file.write(b"le")
    assert folder.read("file") == b"whole"


def test_a_folder_travels_with_a_task(folder: WorkFolder) -> None:
    folder.write("x", b"1")
    copy = pickle.loads(pickle.dumps(folder))
    assert copy == folder
    if isinstance(folder, LocalFolder):
        assert copy.read("x") == b"1"


def test_two_writers_of_a_name_leave_what_one_of_them_wrote(tmp_path: Path) -> None:
    """Two workers that write the same file at once leave the whole content of one of them, and nothing else."""
    folder = WorkFolder.at(tmp_path)
    contents = [bytes([index]) * 100_000 for index in range(4)]
    threads = [threading.Thread(target=folder.write, args=("x", content)) for content in contents for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folder.read("x") in contents
    assert [path.name for path in tmp_path.iterdir()] == ["x"]

"""A file or a folder is whole or absent, whenever its writer ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from bigtrain.base.files import commit_directory, temporary_of, write_atomically

SIZE = 32_000_000
WRITER = f"""
import sys
from itertools import count
from pathlib import Path
from bigtrain.base.files import write_atomically
for number in count():
    write_atomically(Path(sys.argv[1]), bytes([number % 256]) * {SIZE}, durable=sys.argv[2] == "durable")
"""


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize(
    "content", ["é\n", "é\n".encode(), memoryview("é\n".encode()), lambda f: f.write(b"\xc3\xa9\n")]
)
def test_a_text_bytes_or_what_a_function_writes_replaces_the_file(tmp_path, content):
    file = tmp_path / "file"
    for _ in range(2):
        write_atomically(file, content)
        assert file.read_bytes() == b"\xc3\xa9\n" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("durability", ["durable", "fast"])
def test_a_file_is_whole_after_its_writer_was_killed(tmp_path, durability):
    """A writer that is killed with SIGKILL at any moment leaves the old content or the new one, never a part."""
    file, waits = tmp_path / "file", random.Random(0)
    write_atomically(file, b"\xff" * SIZE)
    killed = torn = 0
    while killed < 10 or not torn:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(file), durability])
        while not temporary_of(file).exists() and writer.poll() is None:
            time.sleep(0.0002)
        time.sleep(waits.random() * 0.02)
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
        killed += 1
        torn += temporary_of(file).exists() and temporary_of(file).stat().st_size < SIZE
        data = file.read_bytes()
        assert data == data[:1] * SIZE
        temporary_of(file).unlink(missing_ok=True)
        assert killed < 200, "none was killed in the middle of a file"


def test_a_writer_that_fails_keeps_the_old_file_and_leaves_no_other(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")

    def fail(out: BinaryIO) -> None:
        out.write(b"new")
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_atomically(file, fail)
    assert file.read_text() == "old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("small_disk", ["1m"], indirect=True)
def test_a_full_disk_keeps_the_old_file_and_gives_its_room_back(small_disk):
    file = small_disk / "file"
    file.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"x" * 2_000_000)
    assert file.read_text() == "old" and names(small_disk) == ["file"]
    write_atomically(file, b"x" * 500_000)


def test_a_folder_that_is_missing_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "file", "text")


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    write_atomically(link, "new")
    assert link.is_symlink() and target.read_text() == "new" and names(target.parent) == ["target"]


def test_a_pipe_and_a_device_take_the_content_directly():
    program = (
        'from pathlib import Path\nfrom bigtrain.base.files import *\nwrite_atomically(Path("/dev/stdout"), "a page")'
    )
    written = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert written.stdout == "a page"
    write_atomically(Path("/dev/null"), "a page")
    assert Path("/dev/null").is_char_device()


@pytest.fixture
def calls(monkeypatch):
    """What goes to the disk, in order: flushes of files and folders, and renames."""
    made: list[str] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (made.append(str(Path(f"/proc/self/fd/{fd}").readlink())), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (made.append("rename"), replace(path, to)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (made.append("rename"), rename(path, to)))
    return made


def test_a_durable_file_is_on_the_disk_before_and_after_it_has_its_name(tmp_path, calls):
    write_atomically(tmp_path / "file", "text")
    assert calls == [str(tmp_path / "file.tmp"), "rename", str(tmp_path)]


def test_what_need_not_be_durable_does_not_wait_for_the_disk(tmp_path, calls):
    write_atomically(tmp_path / "file", "text", durable=False)
    assert calls == ["rename"]


def test_a_folder_is_on_the_disk_with_all_its_files_before_it_has_its_name(tmp_path, calls):
    partial, out = tmp_path / ".out.partial", tmp_path / "out"
    (partial / "below").mkdir(parents=True)
    for name in ("a", "below/b"):
        (partial / name).write_text(name)
    commit_directory(partial, out)
    assert set(calls[:4]) == {str(partial / name) for name in ("a", "below/b", "below")} | {str(partial)}
    assert calls[4:] == ["rename", str(tmp_path)]
    assert (out / "below" / "b").read_text() == "below/b" and not partial.exists()


def test_a_link_under_the_temporary_name_is_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "treasure").write_text("mine")
    (tmp_path / "x.tmp").symlink_to(tmp_path / "treasure")
    write_atomically(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new" and (tmp_path / "treasure").read_text() == "mine"


def test_a_link_that_is_not_followed_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "treasure").write_text("mine")
    (tmp_path / "x").symlink_to(tmp_path / "treasure")
    write_atomically(tmp_path / "x", "new", follow_link=False)
    assert not (tmp_path / "x").is_symlink() and (tmp_path / "x").read_text() == "new"
    assert (tmp_path / "treasure").read_text() == "mine"

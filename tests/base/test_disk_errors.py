"""Errors of the operating system become messages: which, and what they say."""

import errno
import os
import socket
import urllib.error
from email.message import Message
from pathlib import Path

import pytest

from bigtrain.base import launcher_protocol
from bigtrain.base.disk_errors import check_temporary_folder, check_writable, disk_error
from bigtrain.base.errors import BigtrainError
from bigtrain.base.files import write_atomically
from tests.refusals import assert_refused


def raised(action) -> Exception:
    with pytest.raises((OSError, ValueError)) as error:
        action()
    return error.value


def test_the_path_the_cause_and_the_remedy_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    below, dangling, long = tmp_path / "file" / "x", tmp_path / "link" / "x", tmp_path / ("n" * 300)
    for path, found, fix in (
        (below, f"{tmp_path}/file is a file, not a folder", "move that file away"),
        (dangling, f"{tmp_path}/link is a link to {tmp_path}/nowhere, which is not there", "create its target"),
        (long, "too long", "choose a shorter name"),
    ):
        message = disk_error(raised(lambda path=path: path.write_text("x")))
        assert message is not None
        assert_refused(message, str(tmp_path), found=[found, socket.gethostname()], fix=fix)
    nul = disk_error(raised(lambda: Path("a\0b").write_text("x")), "a\0b")
    assert nul is not None
    assert_refused(nul, r"a\0b", "NUL")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_failing_disk_is_a_message_even_without_a_name(number: int) -> None:
    message = disk_error(OSError(number, os.strerror(number)))
    assert message is not None and os.strerror(number) in str(message.found) and message.fix


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "reset"),
        TimeoutError("timed out"),
        socket.gaierror(-2, "Name or service not known"),
        urllib.error.HTTPError("https://host/x", 503, "busy", Message(), None),
        OSError("something"),
        RuntimeError("no disk"),
        ValueError("another value"),
    ],
)
def test_errors_of_the_network_and_of_the_program_are_others(error: Exception) -> None:
    assert disk_error(error) is None


def test_after_a_step_no_error_is_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_protocol, "_has_trained", False)
    error = OSError(errno.EIO, "Input/output error", "/data/x")
    assert disk_error(error) is not None
    launcher_protocol.report_step()
    assert disk_error(error) is None


@pytest.mark.parametrize("small_disk", ["4k"], indirect=True)
def test_a_full_disk_is_found_by_writing(small_disk: Path) -> None:
    """A file that is empty fits on a full disk; the error of one that does not names it."""
    with pytest.raises(OSError, match="No space left") as error:
        write_atomically(small_disk / "records", b"x" * 100_000)
    assert error.value.filename == str(small_disk / "records")
    (small_disk / "filler").write_bytes(b"x" * 4096)
    with pytest.raises(BigtrainError) as refused:
        check_writable(small_disk, "run_dir")
    assert_refused(refused, f"run_dir {small_disk} cannot be written", found="the disk is full", fix="free space")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_tmpdir_that_cannot_be_used_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    assert f"TMPDIR {tmp_path}/missing" in (check_temporary_folder() or "")
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert check_temporary_folder() is None

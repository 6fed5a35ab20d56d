"""Promises of `assert_refused`: it passes for the message that it describes, and for no other."""

from __future__ import annotations

import subprocess

import pytest

from bigtrain.base.errors import BigtrainError
from tests.refusals import assert_refused

ERROR = BigtrainError("the disk is full", found="0 bytes free", wanted="1 MB", fix="make room\n    on the disk")


def command(status: int = 1, stderr: str = f"error: {ERROR}\n") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(["bigtrain"], status, "", stderr)


@pytest.mark.parametrize("result", [ERROR, command(), (1, f"a line before\nerror: {ERROR}\n")])
def test_a_refusal_is_recognised_by_its_parts(result):
    assert_refused(result, "disk is full", found="0 bytes", wanted="1 MB", fix=["make room", "on the disk"])


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (ERROR, {"found": "1 MB"}),
        (ERROR, {"fix": ["make room", "reboot"]}),
        (command(0), {}),
        (command(stderr=""), {}),
        (command(stderr=f"error: {ERROR}\nerror: {ERROR}\n"), {}),
        (command(stderr=f"Traceback (most recent call last):\nerror: {ERROR}\n"), {}),
    ],
)
def test_anything_else_is_not_taken_for_that_refusal(result, expected):
    with pytest.raises(AssertionError):
        assert_refused(result, **expected)

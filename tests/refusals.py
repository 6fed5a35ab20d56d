"""How a test says that something was refused: one clear message, no traceback, and the parts that the message names."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from typing import Any

import pytest

from bigtrain.base.errors import BigtrainError

Refused = subprocess.CompletedProcess[str] | tuple[int, str] | pytest.ExceptionInfo[BigtrainError] | BigtrainError
_PARTS = ("found", "wanted", "fix")
_LABEL = re.compile(rf"^  ({'|'.join(_PARTS)}): *", re.MULTILINE)


def assert_refused(
    result: Refused,
    *what: str,
    found: str | Iterable[str] = (),
    wanted: str | Iterable[str] = (),
    fix: str | Iterable[str] = (),
    status: int = 1,
) -> None:
    """Check that a command, or a call, was refused as a user's error.

    Args:
        result: of a command, as `subprocess` has it or as status and output; or the error that a call raised.
        what: texts that the message has, in any of its parts.
        found, wanted, fix: a text, or texts, that this part of the message has.
        status: the exit status of the command.
    """
    message = _message_of(result, status)
    parts = dict(zip(*[iter(_LABEL.split(message)[1:])] * 2, strict=True))
    missing = [f"message: {text!r}" for text in what if text not in message]
    for part, wanted_texts in zip(_PARTS, (found, wanted, fix), strict=True):
        texts = [wanted_texts] if isinstance(wanted_texts, str) else wanted_texts
        missing += [f"{part}: {text!r}" for text in texts if text not in parts.get(part, "")]
    assert not missing, f"lacks {'; '.join(missing)}\n{message}"


def _message_of(result: Any, status: int) -> str:
    if isinstance(result, pytest.ExceptionInfo):
        result = result.value
    if isinstance(result, BigtrainError):
        return str(result)
    if isinstance(result, subprocess.CompletedProcess):
        result = result.returncode, result.stderr or result.stdout
    returncode, output = result
    assert returncode == status, f"status {returncode}\n{output}"
    assert "Traceback" not in output, output
    assert output.count("error:") == 1, output
    return output[output.index("error:") :]

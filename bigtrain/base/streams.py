"""Standard streams as they may be found: closed, on a full disk, without a reader, in an encoding that lacks letters.

A run does not end because its terminal did. A command whose reader has left (`bigtrain data card RUN | head -1`) ends
without a message, with the status that SIGPIPE would give.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
from typing import Any

READER_LEFT = 128 + signal.SIGPIPE
"""The exit status of a command whose stdout is a pipe that nobody reads any longer, as a shell shows it."""


def keep_streams(*, outlive_stdout: bool = True) -> None:
    """Make the standard streams of this process safe to use. A second call changes nothing.

    Args:
        outlive_stdout: go on when stdout cannot be written, for a process whose results lie in files. Otherwise the
            process ends: with READER_LEFT when the reader has left.
    """
    for number in (0, 1, 2):  # else the next file that is opened would get this number, and messages would go into it
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                opened = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
                if opened != number:
                    os.dup2(opened, number)
                    os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            number = 1 if name == "stdout" else 2
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        if isinstance(stream, _Stream):
            stream.outlives = name == "stderr" or outlive_stdout
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _Stream(stream, name == "stderr" or outlive_stdout))


def in_utf8() -> None:
    """Start this process again in Python's UTF-8 mode, where the locale has another encoding.

    Files are then read and written as UTF-8, whatever the locale. Child processes inherit it. PYTHONUTF8 wins.
    """
    os.environ.setdefault("PYTHONUTF8", "1")
    if sys.flags.utf8_mode or os.environ["PYTHONUTF8"] != "1" or not getattr(sys, "orig_argv", None):
        return
    import locale

    if locale.getpreferredencoding(False).lower().replace("-", "") in ("utf8", "ascii"):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class _Stream:
    """A text stream whose failure to write is not an error of the program."""

    def __init__(self, stream: Any, outlives: bool) -> None:
        self._stream = stream
        self.outlives = outlives

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._fails(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._fails(error)

    def _fails(self, error: OSError) -> None:
        """What is still in the buffer goes nowhere, so that the end of the interpreter does not fail on it."""
        if self.outlives and error.errno != errno.EPIPE:  # a disk that is full now may have room again
            atexit.register(self._end)
            return
        self._end()
        if self.outlives:
            return
        if error.errno == errno.EPIPE:
            raise SystemExit(READER_LEFT)
        print(f"error: stdout cannot be written: {error.strerror}", file=sys.stderr)
        raise SystemExit(1)

    def _end(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            number, nowhere = self._stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __iter__(self) -> Any:
        return iter(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

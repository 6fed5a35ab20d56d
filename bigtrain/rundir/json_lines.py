"""metrics.jsonl and events.jsonl: append-only JSON lines that survive a kill at any byte.

A run that was killed repeats the steps after its last checkpoint, so metrics.jsonl may hold a step more than once. The
last line of a step counts. Every line has the time of day, and the age of the process that wrote it, which does not
change when a clock is set.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigtrain.base import BigtrainError, process_seconds
from bigtrain.config import without_secrets


@contextmanager
def written_to(path: Path) -> Iterator[None]:
    """Report an OSError in this block as a failure of the disk that holds `path`.

    Raises:
        BigtrainError: the disk is full or fails.
    """
    try:
        yield
    except OSError as error:
        raise BigtrainError(
            f"{path} cannot be written",
            found=f"{error.strerror} on {socket.gethostname()}",
            fix="free space on that disk or repair it, then start again: the run goes on from its newest checkpoint",
        ) from error


class JsonLines:
    """Appends one JSON object a line."""

    def __init__(self, path: Path, start: int | None = None) -> None:
        """Open a file, which may be there already.

        Args:
            path: the file.
            start: the number of this start of the run, which every line gets.
        """
        self._start = {} if start is None else {"start": start}
        self._file = path.open("ab", buffering=0)
        if path.stat().st_size and not _ends_with_newline(path):
            self._write(b"\n")  # a kill tore the last line; the next one must not be lost with it

    def append(self, record: dict[str, Any]) -> None:
        """Write one line with the times added, in a single write, so that lines are never interleaved.

        Raises:
            BigtrainError: the disk is full or fails.
        """
        times = {"time": round(time.time(), 3), "uptime": round(process_seconds(), 4)}
        line = without_secrets(json.dumps({**record, **self._start, **times}, allow_nan=True))
        self._write(line.encode() + b"\n")

    def _write(self, line: bytes) -> None:
        with written_to(Path(self._file.name)):
            taken = self._file.write(line)
            if taken < len(line):  # a disk that is nearly full takes a part, and the next write raises the error
                self._file.write(line[taken:])

    def sync(self) -> None:
        """Wait until every line is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of a file, in order; a missing file has none, and a torn line is skipped."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict):
                yield record


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The loss curve: one record a step, in order of the steps, the last written line of each."""
    return last_of_each_step(read_json_lines(path))


def last_of_each_step(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record a step, in order of the steps: the last of each."""
    by_step = {record["step"]: record for record in records}
    return [by_step[step] for step in sorted(by_step)]


def newest_metrics(path: Path) -> dict[str, Any] | None:
    """The record of the step that the run did last; None where there is none yet."""
    return _last_record(path, b'\n{"step": ')


def metrics_of_step(path: Path, step: int) -> dict[str, Any] | None:
    """The record of a step that counts; None where the run has not done it."""
    return _last_record(path, b'\n{"step": %d,' % step)


def _last_record(path: Path, beginning: bytes) -> dict[str, Any] | None:
    """The last whole line that starts like this. It is searched from the end, so a long file is not read through.

    Relies on how the training loop writes its lines: `step` is the first key.
    """
    if not path.is_file() or not path.stat().st_size:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = len(data)
        while (start := data.rfind(beginning, 0, end)) >= 0:
            record = _parsed(data[start + 1 : _end_of_line(data, start + 1)])
            if record is not None:
                return record
            end = start + len(beginning) - 1
        return _parsed(data[: _end_of_line(data, 0)]) if data[: len(beginning) - 1] == beginning[1:] else None


def _end_of_line(data: mmap.mmap, start: int) -> int:
    end = data.find(b"\n", start)
    return end if end >= 0 else len(data)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return record


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

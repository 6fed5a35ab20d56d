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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from bigtrain.base import BigtrainError, process_seconds
from bigtrain.config import without_secrets

LONGEST_LINE = 16 << 20
"""Bytes. A decision's evidence and an evaluation's samples, the longest, take some kilobytes."""

BLOCK_BYTES = 4 << 20
"""How much of a file is read at once where all of it is read: some thousand lines."""

END_BYTES = 1 << 16
"""How much of the start or of the end of a file is read where a long one is not read through."""

Parse = Callable[[dict[str, Any]], dict[str, Any] | None]
"""Makes the record of a parsed line; None where it is no such record."""


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

        Raises:
            BigtrainError: it is a pipe.
        """
        if path.is_fifo():  # opening it would wait for a reader
            raise BigtrainError(
                f"{path} cannot be written",
                found="a pipe",
                wanted="a regular file, or none",
                fix=f"remove it: rm {path}",
            )
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
    """Every whole line of a file that is a JSON object, in order; a missing file has none, and a torn line is skipped.

    A line that is longer than any that bigtrain writes is skipped without being read whole.
    """
    for line, _ in whole_lines(path):
        if (record := parsed_line(line)) is not None:
            yield record


def whole_lines(path: Path, begin: int = 0) -> Iterator[tuple[bytes, int]]:
    """The lines from a byte on, each with the byte after it; a missing file has none, and one that is too long is
    skipped."""
    for block, end in whole_blocks(path, begin):
        for line in BytesIO(block):
            end += len(line)
            yield line, end


def whole_blocks(path: Path, begin: int = 0) -> Iterator[tuple[bytes, int]]:
    """The same lines, many at once, each block with the byte where it starts."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(begin)
        while block := file.read(BLOCK_BYTES):
            if not block.endswith(b"\n"):
                last = block.rfind(b"\n") + 1
                rest = file.readline(LONGEST_LINE - (len(block) - last))
                if len(block) - last + len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
                    while rest and not rest.endswith(b"\n"):
                        rest = file.readline(LONGEST_LINE)
                    block, rest = block[:last], b""
                block += rest
            if block:
                yield block, begin
            begin = file.tell()


def first_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines in the first `END_BYTES` of a file, in order; a missing file has none."""
    return _lines_of_end(path, first=True)


def last_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines in the last `END_BYTES` of a file, in order; a missing file has none."""
    return _lines_of_end(path, first=False)


def _lines_of_end(path: Path, *, first: bool) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(0 if first else max(0, os.fstat(file.fileno()).st_size - END_BYTES))
        for line in file.read(END_BYTES).split(b"\n"):
            if (record := parsed_line(line)) is not None:
                yield record


def newest_metrics_line(path: Path, parse: Parse) -> dict[str, Any] | None:
    """The last line of metrics.jsonl from which `parse` makes a record; None where there is none yet."""
    return _last_record(path, b'\n{"step": ', parse)


def metrics_line(path: Path, step: int, parse: Parse) -> dict[str, Any] | None:
    """The last such line of a step."""
    return _last_record(path, b'\n{"step": %d,' % step, parse)


def _last_record(path: Path, beginning: bytes, parse: Parse) -> dict[str, Any] | None:
    """The last whole line that starts like this. It is searched from the end, so a long file is not read through.

    Relies on how the training loop writes its lines: `step` is the first key.
    """
    if not path.is_file() or not path.stat().st_size:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = len(data)
        while (start := data.rfind(beginning, 0, end)) >= 0:
            record = parsed_line(data[start + 1 : _end_of_line(data, start + 1)], parse)
            if record is not None:
                return record
            end = start + len(beginning) - 1
        starts_with_it = data[: len(beginning) - 1] == beginning[1:]
        return parsed_line(data[: _end_of_line(data, 0)], parse) if starts_with_it else None


def _end_of_line(data: mmap.mmap, start: int) -> int:
    end = data.find(b"\n", start)
    return end if end >= 0 else len(data)


def parsed_line(line: bytes, parse: Parse = lambda record: record) -> dict[str, Any] | None:
    """The record of a line; None where it is torn, damaged or no JSON object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return parse(record) if isinstance(record, dict) else None


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

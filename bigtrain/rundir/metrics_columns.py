"""Fields of metrics.jsonl in columns, for there may be millions of lines.

::

    a block of whole lines ──► each line one flat object of plain numbers? ──► parsed at once, into columns
                                   │ no, or a number is out of bounds
                                   ▼
                               line by line, as `records` reads it

Both give the same columns: what is parsed at once is only what `records` would take as it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bigtrain.rundir.json_lines import whole_blocks
from bigtrain.rundir.records import Record, is_right, step_of

if TYPE_CHECKING:
    from pyarrow.json import ParseOptions

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

COUNTS = ("step", "start", "tokens")
TIMES = ("time", "uptime", "step_seconds", "data_seconds")
"""The numbers that the ledger needs."""
LONGEST_PLAIN = 4000
"""Bytes of a line that is parsed with others. Python refuses an integer of more than 4,300 digits."""
NEWLINE = ord("\n")
NAN = float("nan")


@dataclass(frozen=True)
class MetricsColumns:
    """Some fields of some lines of metrics.jsonl. A line without step and loss is none."""

    counts: Mapping[str, I64]
    """[n] for each of `COUNTS`, 0 where a line has none."""
    numbers: Mapping[str, F64]
    """[n] for each name, not a number where a line has none."""
    ends: I64
    """[n], the byte of the file after each line."""
    last_line: bytes
    """Of the highest step, the last one written; empty without any."""

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def highest(self) -> int:
        """The step of `last_line`; -1 without any."""
        return int(self.counts["step"].max(initial=-1))

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]], numbers: Sequence[str] = TIMES) -> MetricsColumns:
        """Those of records that have a step. They are of no file, so `ends` and `last_line` say nothing."""
        counts = {name: np.array([_count(record.get(name)) for record in records], np.int64) for name in COUNTS}
        columns = {name: np.array([_number(r.get(name)) for r in records], np.float64) for name in numbers}
        return cls(counts, columns, np.zeros(len(records), np.int64), b"")


def read_metrics_columns(path: Path, numbers: Sequence[str] = TIMES, begin: int = 0) -> Iterator[MetricsColumns]:
    """The lines of metrics.jsonl from a byte on, in order, those of repeated steps included, some thousand at a time.

    Args:
        path: the file; a missing one has no lines.
        numbers: the names of the numbers that are wanted beside `COUNTS`.
        begin: where a line starts.
    """
    names = tuple(dict.fromkeys(("loss", *numbers)))
    for block, first in whole_blocks(path, begin):
        yield _at_once(block, first, names) or _line_by_line(block, first, names)


def _line_by_line(block: bytes, end: int, names: Sequence[str]) -> MetricsColumns:
    records: list[Record] = []
    ends: list[int] = []
    highest, last_line = -1, b""
    for line in BytesIO(block):
        end += len(line)
        record = step_of(line)
        if record is None:
            continue
        records.append(record)
        ends.append(end)
        if record["step"] >= highest:
            highest, last_line = record["step"], line
    columns = MetricsColumns.of(records, names)
    return MetricsColumns(columns.counts, columns.numbers, np.array(ends, np.int64), last_line)


def _at_once(block: bytes, begin: int, names: tuple[str, ...]) -> MetricsColumns | None:
    """The columns of a block; None where a line is anything but one flat object of right fields."""
    text = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(text == NEWLINE) + 1
    if not _is_plain(block, text, ends):
        return None
    fields = _parsed(block, names)
    if fields is None or any(len(field) != len(ends) or not _is_right_field(n, field) for n, field in fields.items()):
        return None
    has_both = _known(fields["step"]) & _known(fields["loss"])
    ends = ends[has_both]
    counts = {name: _filled(fields[name], 0)[has_both] for name in COUNTS}
    numbers = {name: _filled(fields[name], NAN)[has_both] for name in names}
    last_line = b""
    if len(ends):
        end = int(ends[len(ends) - 1 - counts["step"][::-1].argmax()])
        last_line = block[block.rfind(b"\n", 0, end - 1) + 1 : end]
    return MetricsColumns(counts, numbers, ends + begin, last_line)


def _is_plain(block: bytes, text: npt.NDArray[np.uint8], ends: I64) -> bool:
    """Whether each line can only be one flat object: braces are nowhere but at its start and end.

    The parser does not look at line ends, at nesting or at encodings, and knows more names of infinity than JSON.
    """
    starts = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
    lengths = ends - starts
    return (
        block.endswith(b"\n")
        and block.isascii()
        and int(lengths.min()) >= len("{}\n")
        and int(lengths.max()) <= LONGEST_PLAIN
        and bool((text[starts] == ord("{")).all() and (text[ends - 2] == ord("}")).all())
        and block.count(b"{") == block.count(b"}") == len(ends)
        and b"[" not in block
        and not (b"I" in block and b"Inf" in block)  # looks for one character first, which is quicker by far
        and not (b"N" in block and b"-N" in block)
    )


def _parsed(block: bytes, names: tuple[str, ...]) -> dict[str, Any] | None:
    """The fields of all objects of a block; None where one cannot be read."""
    import pyarrow as pa
    from pyarrow.json import ReadOptions, read_json

    reading = ReadOptions(use_threads=False, block_size=len(block) + 1)
    pool = pa.system_memory_pool()  # the default one keeps what it had
    try:
        table = read_json(pa.BufferReader(block), reading, _fields(names), pool)
    except pa.ArrowInvalid:  # no JSON, a field twice, or one of another type
        return None
    return {name: table[name].combine_chunks() for name in (*COUNTS, *names)}


def _known(field: Any) -> npt.NDArray[np.bool_]:
    """[n], whether a line has the field."""
    return np.from_dlpack(field.is_valid().cast("uint8")).astype(np.bool_)


def _values(field: Any) -> npt.NDArray[Any]:
    """The values of the lines that have the field. Its `to_numpy` and `fill_null` would import pandas: 40 MB."""
    return np.from_dlpack(field.drop_null())


def _filled(field: Any, missing: float) -> npt.NDArray[Any]:
    """[n], with a value for the lines that do not have the field."""
    values = _values(field)
    if len(values) == len(field):
        return values
    filled = np.full(len(field), missing, values.dtype)
    filled[_known(field)] = values
    return filled


@cache
def _fields(names: tuple[str, ...]) -> ParseOptions:
    import pyarrow as pa
    from pyarrow.json import ParseOptions

    kinds = [(name, pa.int64()) for name in COUNTS] + [(name, pa.float64()) for name in names]
    return ParseOptions(explicit_schema=pa.schema(kinds), unexpected_field_behavior="ignore")


def _is_right_field(name: str, field: Any) -> bool:
    """Whether all values are within their bounds. Bounds are intervals, so the extremes and NaN stand for the rest."""
    values = _values(field)
    if not len(values):
        return True
    low, high = np.fmin.reduce(values), np.fmax.reduce(values)
    if np.isinf(low) or np.isinf(high):  # an integer that no float holds
        return False
    extremes = [low.item(), high.item(), *([NAN] if np.isnan(values).any() else [])]
    return all(is_right({name: value}) for value in extremes)


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, int | float) else NAN
    except OverflowError:  # an integer that no float holds
        return NAN

"""Files of sorted tables, of which a task reads a range: what the tasks of a shuffle hand to each other.

    checksum (u64) | header length (u64) | header (JSON) | table | table | ...
    table          | fences (u64)        | rows

The rows of a table are sorted by its first column, and its fences are every FENCE-th value of that column. So a range
of values is a range of bytes, and finding it reads the fences alone. A row is packed: its columns follow each other.
Tables whose first column is not u64 are not sorted, and have no fences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from bigtrain.base import parse_json
from bigtrain.data.format.work_folder import WorkFolder

Table = npt.NDArray[np.void]
"""[rows], with a field for each column."""
About = dict[str, Any]
"""What a file says beside its tables, as JSON types."""

FENCE = 256
"""Rows from one fence to the next: a range costs at most so many rows more at each end."""
HEADER_GUESS = 1 << 12
"""Bytes that are read first, in which most headers end."""
CHECKSUM_BYTES = 8


class SortedTables:
    """The tables of a file, of which ranges are read.

    Args:
        folder: the folder of the file.
        name: its name there.
    """

    def __init__(self, folder: WorkFolder, name: str) -> None:
        self._folder, self._name = folder, name

    @property
    def about(self) -> About:
        """What its writer said beside the tables."""
        about: About = self._header["about"]
        return about

    def rows(self, table: str, start: int = 0, end: int | None = None) -> Table:
        """The rows [start, end) of a table, by their numbers. It must not be written to."""
        entry = self._header["tables"][table]
        dtype = _dtype_of(entry["columns"])
        end = entry["rows"] if end is None else min(end, entry["rows"])
        first = self._body + entry["offset"] + 8 * entry["fences"]
        return np.frombuffer(self._read(first + start * dtype.itemsize, first + end * dtype.itemsize), dtype)

    def between(self, table: str, low: int, high: int) -> Table:
        """The rows whose first column is in [low, high). It must not be written to."""
        entry = self._header["tables"][table]
        if low >= high or not entry["rows"]:
            return np.empty(0, _dtype_of(entry["columns"]))
        first, last = np.uint64(low), np.uint64(high - 1)  # 2^64 itself is no u64
        offset = self._body + entry["offset"]
        fences = np.frombuffer(self._read(offset, offset + 8 * entry["fences"]), "<u8")
        start = max(int(fences.searchsorted(first)) - 1, 0) * FENCE
        rows = self.rows(table, start, int(fences.searchsorted(last, "right")) * FENCE)
        values = np.ascontiguousarray(rows[entry["columns"][0][0]])
        return rows[values.searchsorted(first) : values.searchsorted(last, "right")]

    @property
    def is_whole(self) -> bool:
        """Whether the file is there, as it was written. Reads all of it."""
        try:
            content = memoryview(self._folder.read(self._name))
        except FileNotFoundError:
            return False
        return bytes(content[:CHECKSUM_BYTES]) == _checksum(content[CHECKSUM_BYTES:])

    @cached_property
    def _start(self) -> tuple[About, int]:
        """The header, and where the first table starts."""
        data = self._folder.read(self._name, 0, HEADER_GUESS)
        start = CHECKSUM_BYTES + 8
        end = start + int.from_bytes(data[CHECKSUM_BYTES:start], "little")
        if end > len(data):
            data = self._folder.read(self._name, 0, end)
        return parse_json(data[start:end], self._name), end

    @property
    def _header(self) -> About:
        return self._start[0]

    @property
    def _body(self) -> int:
        return self._start[1]

    def _read(self, start: int, end: int) -> bytes:
        return self._folder.read(self._name, start, end) if end > start else b""


@dataclass(frozen=True)
class FileSeries:
    """Files of the same tables, one for each task of a step."""

    folder: WorkFolder
    where: str
    """The start of their names."""
    count: int

    def name(self, index: int) -> str:
        """The name of a file."""
        return f"{self.where}-{index:06d}"

    def __getitem__(self, index: int) -> SortedTables:
        """The file of a task, from 0."""
        return SortedTables(self.folder, self.name(index))

    def __iter__(self) -> Iterator[SortedTables]:
        return (self[index] for index in range(self.count))

    def make(self, index: int, make: Callable[[], tuple[Mapping[str, Table], About]]) -> About:
        """See `made`."""
        return made(self.folder, self.name(index), make)


def made(folder: WorkFolder, name: str, make: Callable[[], tuple[Mapping[str, Table], About]]) -> About:
    """What a file of sorted tables says beside them. The file is made, unless it is there and whole.

    Args:
        folder: the folder of the file.
        name: its name there, which stands for all that its content follows from.
        make: gives the tables, and what to say beside them.
    """
    file = SortedTables(folder, name)
    if not file.is_whole:
        folder.write(name, encode(*make()), durable=False)  # its checksum shows what a loss of power left of it
        file = SortedTables(folder, name)
    return file.about


def encode(tables: Mapping[str, Table], about: About) -> bytes:
    """The bytes of a file with these tables, whose rows are sorted."""
    entries: About = {}
    parts: list[bytes] = []
    offset = 0
    for name, table in tables.items():
        first = table.dtype.names[0] if table.dtype.names else ""
        fences = table[first][::FENCE] if table.dtype[first] == np.dtype("<u8") else np.empty(0, "<u8")
        columns = [[column, table.dtype[column].str] for column in table.dtype.names or ()]
        entries[name] = {"columns": columns, "rows": len(table), "fences": len(fences), "offset": offset}
        parts += [fences.tobytes(), table.tobytes()]
        offset += len(parts[-2]) + len(parts[-1])
    header = json.dumps({"about": about, "tables": entries}).encode()
    content = b"".join((len(header).to_bytes(8, "little"), header, *parts))
    return _checksum(memoryview(content)) + content


def table_of(*columns: tuple[str, str, npt.ArrayLike]) -> Table:
    """A table of columns of equal length: the name, the type and the values of each."""
    dtype = np.dtype([(name, kind) for name, kind, _ in columns])
    table = np.empty(len(np.asarray(columns[0][2])), dtype)
    for name, _, values in columns:
        table[name] = values
    return table


def _checksum(content: memoryview) -> bytes:
    return xxhash.xxh3_64_digest(content)


def _dtype_of(columns: list[list[str]]) -> np.dtype[np.void]:
    return np.dtype([(name, kind) for name, kind in columns])

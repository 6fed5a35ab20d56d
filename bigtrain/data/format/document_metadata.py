r"""What a corpus says of its documents beside their texts, such as URL and date: a file beside each shard.

    00000.meta     magic b"btmeta\0\1" · n u64 · end u64[n], of each document's text in what follows · UTF-8 JSON

Everything is little-endian. The text of a document is one JSON object with the fields that its source keeps, or empty.
Nothing is trained on it, so the file is not in the manifest, and the id of a dataset does not depend on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigtrain.data.format.columns import ColumnReader
from bigtrain.data.format.file_record import changed_error

SUFFIX = ".meta"
MAGIC = b"btmeta\0\1"
HEAD = len(MAGIC) + 8
LONGEST_TEXT = 4096
"""Characters of a field; what is longer is cut, and ends in CUT."""
CUT = "\u2026"


def metadata_text(fields: Mapping[str, Any]) -> str:
    """The JSON text of some fields. What JSON cannot hold, such as a date, is written as Python prints it."""
    return json.dumps({name: _bounded(value) for name, value in fields.items()}, ensure_ascii=True)


def _bounded(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # JSON has no NaN
    if not isinstance(value, str):
        value = json.dumps(value, default=str) if isinstance(value, list | dict) else str(value)
    return value if len(value) <= LONGEST_TEXT else value[: LONGEST_TEXT - 1] + CUT


def encoded_metadata(texts: Sequence[str]) -> bytes:
    """The file of a shard whose documents have these texts."""
    parts = [text.encode() for text in texts]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64).astype("<u8")
    return b"".join((MAGIC, np.array([len(parts)], "<u8").tobytes(), ends.tobytes(), *parts))


def metadata_of(data: memoryview, document: int, path: Path) -> dict[str, Any] | None:
    """The fields of a document; None where it has none.

    Args:
        data: the file.
        document: the number of the document in its shard.
        path: the file's path, for messages.

    Raises:
        BigtrainError: the file is damaged.
    """
    if bytes(data[: len(MAGIC)]) != MAGIC or len(data) < HEAD:
        raise changed_error(path, f"{bytes(data[:8])!r}, {len(data):,} bytes", repr(MAGIC))
    count = int(np.frombuffer(data, "<u8", 1, len(MAGIC))[0])
    if not document < count <= (len(data) - HEAD) // 8:
        raise changed_error(path, f"{count:,} documents in {len(data):,} bytes", f"document {document:,} among them")
    ends = ColumnReader(data, HEAD)("<u8", count)
    start, end = (int(ends[document - 1]) if document else 0), int(ends[document])
    text = bytes(data[HEAD + 8 * count :][start:end])
    if not text and start == end:
        return None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise changed_error(path, str(error)[:200], f"the JSON of document {document:,}") from None
    if not isinstance(fields, dict):
        raise changed_error(path, f"a JSON {type(fields).__name__}", "an object")
    return fields

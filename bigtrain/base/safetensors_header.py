"""The header of a safetensors file: names, types, shapes and byte ranges of tensors that follow each other.

Format (https://huggingface.co/docs/safetensors): header length (u64, little-endian), JSON header
{name: {"dtype", "shape", "data_offsets"}}, then the tensors' bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

_ALIGNMENT = 8
"""Bytes. Spaces after the JSON make the tensors start at a multiple of it."""


class HeaderEntry(NamedTuple):
    """A tensor as the header describes it."""

    name: str
    dtype: str
    """In the format's words: F32, BF16, U8, ..."""
    shape: Sequence[int]
    nbytes: int


def safetensors_header(
    entries: Iterable[HeaderEntry], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, list[int]]:
    """The header, with its length before it, and where each tensor starts after it.

    Args:
        entries: the tensors, in the order in which they are written.
        metadata: texts to keep beside them.

    Returns:
        The bytes of the header, and for each tensor the offset of its bytes from the header's end.
    """
    head: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    starts, end = [], 0
    for entry in entries:
        start, end = end, end + entry.nbytes
        starts.append(start)
        head[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, starts

"""Promises of the header of safetensors files: the library reads it, and tensors start where it says, aligned."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from bigtrain.base.safetensors_header import HeaderEntry, safetensors_header

shapes = st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=6)


@given(shapes=shapes, metadata=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
def test_the_library_reads_what_stands_under_the_header(shapes, metadata):
    tensors = {f"tensor {i}": torch.full(shape, float(i)) for i, shape in enumerate(shapes)}
    entries = [HeaderEntry(name, "F32", t.shape, t.nbytes) for name, t in tensors.items()]
    head, starts = safetensors_header(entries, metadata)
    data = b"".join(t.numpy().tobytes() for t in tensors.values())
    read = load(head + data)
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], t) for name, t in tensors.items())
    assert len(head) % 8 == 0 and len(starts) == len(tensors)
    assert all(
        data[start : start + t.nbytes] == t.numpy().tobytes() for start, t in zip(starts, tensors.values(), strict=True)
    )


def test_the_bytes_are_those_that_the_library_writes(tmp_path: Path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(1)}
    head, _ = safetensors_header([HeaderEntry(n, "F32", t.shape, t.nbytes) for n, t in tensors.items()])
    library = save(tensors)
    length = int.from_bytes(library[:8], "little")
    assert json.loads(head[8:]) == json.loads(library[8 : 8 + length])

"""One rank's fragments in one file, in the safetensors format.

Written here rather than with `safetensors.torch.save_file`, which first copies every tensor into one block of bytes
in memory and neither hashes nor fsyncs: this writer streams from the live tensors and hashes on the way. What is
written is read with the safetensors library, by us and by anybody.

Format (https://huggingface.co/docs/safetensors): header length (u64, little-endian), JSON header
{key: {"dtype", "shape", "data_offsets"}}, then the tensors' bytes one after the other.
A key is `kind/name/offset`: which piece of which parameter this is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from safetensors import safe_open

from bigtrain.checkpoint.fragment import Fragment

RNG = "rng"
_DTYPES = {torch.float32: "F32", torch.uint8: "U8"}


@dataclass(frozen=True)
class FileSeal:
    """What a file must be, byte for byte."""

    size: int
    """Bytes."""
    xxh3_128: str
    """Hash of the contents, 32 hexadecimal digits."""


@dataclass(frozen=True)
class StoredPiece:
    """A fragment as it lies in a file: elements [offset, offset + length) of the flattened parameter."""

    path: Path
    key: str
    name: str
    kind: str
    offset: int
    length: int


def write_tensor_file(path: Path, fragments: Sequence[Fragment], rng: Mapping[str, torch.Tensor]) -> FileSeal:
    """Write fragments and the random generators' state to a new file and wait until it is durable.

    Raises:
        OSError: the disk is full, the directory is gone or not writable, ...
    """
    tensors = {f"{f.kind}/{f.name}/{f.offset}": f.data for f in fragments}
    tensors |= {f"{RNG}/{generator}/0": state for generator, state in rng.items()}
    header: dict[str, object] = {}
    end = 0
    for key, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # tensors begin aligned

    hasher, size = xxhash.xxh3_128(), 0
    with path.open("xb") as file:
        for block in (len(head).to_bytes(8, "little"), head):
            file.write(block)
            hasher.update(block)
            size += len(block)
        for tensor in tensors.values():
            # On little-endian machines, the only ones PyTorch is built for, memory is the format.
            data = tensor.detach().cpu().contiguous().numpy().data.cast("B")
            file.write(data)
            hasher.update(data)
            size += len(data)
        file.flush()
        os.fsync(file.fileno())
    return FileSeal(size, hasher.hexdigest())


def seal_of(path: Path) -> FileSeal:
    """Read a file through and seal it as it is now."""
    hasher, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            hasher.update(block)
            size += len(block)
    return FileSeal(size, hasher.hexdigest())


def stored_pieces(path: Path) -> Iterator[StoredPiece]:
    """What a file holds, from its header alone; random state left out."""
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a dict)
            kind, rest = key.split("/", 1)
            name, offset = rest.rsplit("/", 1)
            if kind != RNG:
                (length,) = file.get_slice(key).get_shape()
                yield StoredPiece(path, key, name, kind, int(offset), length)


def read_rng(path: Path) -> dict[str, torch.Tensor]:
    """The random generators' state in a file, by generator."""
    with safe_open(path, framework="pt") as file:
        keys = [key for key in file.keys() if key.startswith(f"{RNG}/")]  # noqa: SIM118
        return {key.split("/")[1]: file.get_tensor(key) for key in keys}

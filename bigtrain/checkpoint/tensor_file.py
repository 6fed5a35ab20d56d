"""One rank's fragments in one file in the safetensors format, made as an image in memory that is then written.

The training thread copies its fragments into the image and continues, while the image is hashed and written. The image
is the only copy of the state that saving needs, and the next save uses its memory again. It is not made with
`safetensors.torch.save_file`, which needs a second copy in memory, and neither hashes nor fsyncs. The safetensors
library can read the files.

Format (https://huggingface.co/docs/safetensors): header length (u64, little-endian), JSON header
{key: {"dtype", "shape", "data_offsets"}}, then the bytes of the tensors.

A key says which piece of which parameter this is:

    kind/name/offset                     elements from `offset` on of the flattened parameter
    kind/name/offset@dim:start+length    the same of the flattened shard [start, start + length) of dimension `dim`
    rng/generator/0                      the state of a random generator

Shards of dimension 0 are ranges of the flattened parameter and are stored as such.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xxhash

from bigtrain.base import BigtrainError, HeaderEntry, parse_json, safetensors_header
from bigtrain.checkpoint.fragment import Fragment, TensorShard
from bigtrain.checkpoint.manifest import FileChecksum
from bigtrain.checkpoint.overlap import Region, region_of
from bigtrain.checkpoint.storage import Reader

RNG = "rng"
_DTYPES = {torch.float32: "F32", torch.uint8: "U8"}
_LARGEST_HEADER = 1 << 30
_HASH_BLOCK = 1 << 24
_LARGEST_RNG = 1 << 20
"""Bytes. PyTorch's generators have some 5,000."""
_KEY = re.compile(
    r"(?P<kind>[^/]+)/(?P<name>.+)/(?P<offset>[0-9]{1,19})"
    r"(?:@(?P<dim>[0-9]{1,2}):(?P<start>[0-9]{1,19})\+(?P<length>[0-9]{1,19}))?",
    re.DOTALL,
)


@dataclass(frozen=True)
class StoredPiece:
    """A fragment in a file."""

    name: str
    kind: str
    region: Region
    """Which elements of the parameter."""
    begin: int
    """Offset of its first byte in the file."""


class Image:
    """The bytes of a file, and their memory, which is kept from one save to the next."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._size = 0
        self._pinned = False

    def reserve(self, fragments: Sequence[Fragment], rng: Mapping[str, torch.Tensor]) -> None:
        """Allocate the memory for the fragments and touch it: the first use of a page costs more than the copy."""
        tensors = _tensors(fragments, rng)
        self._resize(len(_header(tensors)[0]) + sum(tensor.nbytes for tensor in tensors.values()))
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._pin()
        else:
            self._memory.zero_()

    def fill(self, fragments: Sequence[Fragment], rng: Mapping[str, torch.Tensor]) -> None:
        """Copy fragments and random state, which may change after this returns."""
        tensors = _tensors(fragments, rng)
        head, places = _header(tensors)
        on_cuda = any(tensor.is_cuda for tensor in tensors.values())
        self._size = len(head) + sum(tensor.nbytes for tensor in tensors.values())
        self._resize(self._size)
        if on_cuda:
            self._pin()
        self._memory[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        for tensor, start in zip(tensors.values(), places, strict=True):
            place = self._memory[len(head) + start : len(head) + start + tensor.nbytes]
            place.view(tensor.dtype).copy_(tensor.view(-1), non_blocking=True)
        if on_cuda:
            torch.cuda.synchronize()

    @property
    def data(self) -> memoryview:
        """The file's bytes. On little-endian machines, the only ones PyTorch is built for, memory is the format."""
        return bytes_of(self._memory[: self._size])

    def checksum(self) -> FileChecksum:
        """Size and hash of the bytes. xxhash releases the interpreter lock."""
        return FileChecksum(self._size, xxhash.xxh3_128(self.data).hexdigest())

    def release(self) -> None:
        """Free the memory."""
        if self._pinned:
            _check_cuda(_cuda().cudaHostUnregister(self._memory.data_ptr()))
        self._memory, self._pinned = torch.empty(0, dtype=torch.uint8), False

    def _resize(self, size: int) -> None:
        if self._memory.numel() < size:
            self.release()  # before asking for more
            # Whole pages, from which a disk can read without a copy. The tensor keeps the mapping.
            self._memory = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)

    def _pin(self) -> None:
        """Pin the memory, so that the device can write into it. PyTorch would round the size up to a power of two."""
        if not self._pinned:
            memory = self._memory
            _check_cuda(_cuda().cudaHostRegister(memory.data_ptr(), memory.numel(), 0))
            self._pinned = True


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _check_cuda(status: int) -> None:
    if int(status):
        raise OSError(f"the host memory for checkpoints cannot be pinned: CUDA error {int(status)}")


def _tensors(fragments: Sequence[Fragment], rng: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # Random state comes last: its length is irregular, and float32 must be aligned.
    return {_key(f): f.data.detach() for f in fragments} | {f"{RNG}/{name}/0": state for name, state in rng.items()}


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor in host memory, as bytes."""
    return tensor.view(-1).numpy().data.cast("B")


def _header(tensors: Mapping[str, torch.Tensor]) -> tuple[bytes, list[int]]:
    return safetensors_header(
        HeaderEntry(key, _DTYPES[tensor.dtype], tensor.shape, tensor.nbytes) for key, tensor in tensors.items()
    )


def _key(fragment: Fragment) -> str:
    shard = fragment.shard
    if shard is None or shard.dim == 0:
        start = region_of(fragment.shape, shard, fragment.offset, 0).start
        return f"{fragment.kind}/{fragment.name}/{start}"
    suffix = f"@{shard.dim}:{shard.start}+{shard.length}"
    return f"{fragment.kind}/{fragment.name}/{fragment.offset}{suffix}"


def checksum_of(reader: Reader) -> FileChecksum:
    """Size and hash of a file as it is now. Raises OSError."""
    hasher, block = xxhash.xxh3_128(), memoryview(bytearray(min(_HASH_BLOCK, reader.size)))
    for start in range(0, reader.size, _HASH_BLOCK):
        part = block[: reader.size - start]
        reader.read_into(start, part)
        hasher.update(part)
    return FileChecksum(reader.size, hasher.hexdigest())


def read_header(reader: Reader) -> bytes:
    """The header of a file as stored, with its length before it.

    Raises:
        OSError: it cannot be read.
        BigtrainError: it is not a safetensors file.
    """
    length = 8 + int.from_bytes(_read(reader, 0, 8), "little") if reader.size >= 8 else 0
    if not 8 <= length <= min(reader.size, _LARGEST_HEADER):
        raise BigtrainError(f"{reader} is damaged", found=f"a header of {length:,} bytes in a file of {reader.size:,}")
    return _read(reader, 0, length)


def stored_pieces(
    file: str, head: bytes, size: int, shapes: Mapping[str, Sequence[int]], kinds: Collection[str] | None = None
) -> Iterator[StoredPiece]:
    """The pieces in a file, from its header alone, without random state. Each lies inside its parameter and the file.

    Args:
        head: what `read_header` returned.
        size: bytes of the file.
        shapes: of the whole parameters.
        kinds: pieces of other kinds are not looked at. None: all are.

    Raises:
        BigtrainError: the header is not one that bigtrain writes.
    """
    for key, (begin, end, entry) in _entries(file, head, size).items():
        kind = key.partition("/")[0]
        if kind == RNG or (kinds is not None and kind not in kinds):
            continue
        parts = _KEY.fullmatch(key)
        length = (end - begin) // 4
        if (
            parts is None
            or parts["name"] not in shapes
            or entry["dtype"] != "F32"
            or entry["shape"] != [length]
            or (end - begin) % 4
        ):
            raise _damaged(file, key, "a piece of a parameter of this checkpoint")
        shape = tuple(shapes[parts["name"]])
        shard = None
        if parts["dim"]:
            shard = TensorShard(int(parts["dim"]), int(parts["start"]), int(parts["length"]))
            if shard.dim >= len(shape) or shard.start + shard.length > shape[shard.dim]:
                raise _damaged(file, key, f"a shard of a parameter of shape {list(shape)}")
        own = shape if shard is None else (*shape[: shard.dim], shard.length, *shape[shard.dim + 1 :])
        if int(parts["offset"]) + length > math.prod(own):
            raise _damaged(file, key, f"a piece inside a parameter of shape {list(shape)}")
        region = region_of(shape, shard, int(parts["offset"]), length)
        yield StoredPiece(parts["name"], parts["kind"], region, len(head) + begin)


def _entries(file: object, head: bytes, size: int) -> dict[str, tuple[int, int, dict[str, Any]]]:
    """The entries of a header by their keys, each with its range of bytes, which lies inside the file."""
    entries = parse_json(head[8:], file)
    if not isinstance(entries, dict):
        raise _damaged(file, type(entries).__name__, "a header of tensors")
    found = {}
    for key, entry in entries.items():
        match entry:
            case {"dtype": str(), "shape": list(), "data_offsets": [int(begin), int(end)]}:
                if not 0 <= begin <= end <= size - len(head):
                    raise _damaged(file, f"{key} at bytes {begin} to {end}", "a range inside the file")
                found[key] = (begin, end, entry)
            case _:
                raise _damaged(file, f"{key}: {entry}", "dtype, shape and data_offsets")
    return found


def _damaged(file: object, found: str, wanted: str) -> BigtrainError:
    return BigtrainError(f"{file} is damaged", found=found[:200], wanted=wanted)


def read_rng(reader: Reader) -> dict[str, torch.Tensor]:
    """The state of the random generators in a file, by generator."""
    head = read_header(reader)
    state = {}
    for key, (begin, end, _) in _entries(reader, head, reader.size).items():
        kind, generator, *_ = f"{key}/".split("/")
        if kind == RNG:
            if end - begin > _LARGEST_RNG:
                raise _damaged(reader, f"{key} of {end - begin:,} bytes", f"at most {_LARGEST_RNG:,}")
            data = bytearray(_read(reader, len(head) + begin, end - begin))
            state[generator] = torch.frombuffer(data, dtype=torch.uint8)
    return state


def _read(reader: Reader, start: int, length: int) -> bytes:
    data = bytearray(length)
    reader.read_into(start, memoryview(data))
    return bytes(data)

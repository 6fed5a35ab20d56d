"""Named tensors in safetensors files of bounded size, written and read one tensor at a time.

A file begins with where each tensor stands, so names, types and shapes are given before any tensor is; then the
tensors go to disk as they come, and memory never holds more than one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bigtrain.base import BigtrainError, HeaderEntry, bare_name, naming, read_json, safetensors_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types that weights may have, by their names in the files."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.int8: "I8", torch.uint8: "U8"}
"""Those of everything that is stored: codes of quantised weights, too."""


def common_dtype(dtypes: Collection[torch.dtype]) -> torch.dtype:
    """A type that holds every number of these types exactly."""
    return reduce(torch.promote_types, dtypes)


class StoredTensor(NamedTuple):
    """A tensor before it is there."""

    name: str
    dtype: torch.dtype
    shape: torch.Size

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.shape.numel() * self.dtype.itemsize


def write_safetensors(
    entries: Sequence[StoredTensor], tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `model.safetensors`, or `model-00001-of-0000N.safetensors` and so on with their index.

    Args:
        entries: what is going to come.
        tensors: names and tensors, in the same order; read once.
        folder: where to write; it exists.
        shard_bytes: a file holds no more than this, unless one tensor is larger.
    """
    shards = list(_shards(entries, shard_bytes))
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE]
    coming = iter(tensors)
    for file, shard in zip(names, shards, strict=True):
        with naming(folder / file), (folder / file).open("wb") as out:
            out.write(_header(shard))
            for entry in shard:
                name, tensor = next(coming)
                assert StoredTensor(name, tensor.dtype, tensor.shape) == entry, (
                    name,
                    tensor.dtype,
                    tensor.shape,
                    entry,
                )
                out.write(bytes_of(tensor))
                del tensor
    assert next(coming, None) is None
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(entry.nbytes for entry in entries)},
            "weight_map": {e.name: file for file, shard in zip(names, shards, strict=True) for e in shard},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, row by row. On little-endian machines, the only ones PyTorch is built for, memory is the
    format."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


class TensorFolder:
    """The tensors in a folder's safetensors files, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Read the headers.

        Raises:
            BigtrainError: files are missing or damaged, or the index does not say what is in them.
        """
        self.folder = folder
        self._file_of: dict[str, Path] = {}
        self._about: dict[str, tuple[str, torch.Size]] = {}
        listed = self._index()
        for file in sorted(set(listed.values())) if listed else [SINGLE]:
            self._add(folder / file)
        if listed and (wrong := sorted(listed.keys() ^ self._file_of.keys())):
            raise BigtrainError(
                f"{folder / INDEX} and the files differ",
                found=_some(wrong),
                wanted="every tensor in both",
                fix="fetch the folder again",
            )

    def files(self) -> dict[str, Path]:
        """The file of each tensor."""
        return dict(self._file_of)

    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._about)

    def dtype_name(self, name: str) -> str:
        """A tensor's type, as the file names it: a key of `DTYPES`, or something that weights cannot be."""
        return self._about[name][0]

    def shape(self, name: str) -> torch.Size:
        """A tensor's shape."""
        return self._about[name][1]

    def read(self, name: str) -> Tensor:
        """One tensor. Its memory may be the file's: it is to be copied, not to be written to. Raises BigtrainError."""
        try:
            with safe_open(self._file_of[name], framework="pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise BigtrainError(f"{name} cannot be read from {self._file_of[name]}", found=str(error)) from None

    def _index(self) -> dict[str, str]:
        path = self.folder / INDEX
        if not path.exists():
            return {}
        content = read_json(path)
        listed = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(listed, dict) or not listed:
            raise BigtrainError(
                f"{path} cannot be read",
                found="no weight_map" if listed is None else f"weight_map: {json.dumps(listed)[:100]}",
                wanted="an object: the name of a file for the name of each tensor",
                fix="fetch it again",
            )
        files = {name: bare_name(file, path) for name, file in listed.items()}
        if (self.folder / SINGLE).exists() and SINGLE not in files.values():
            raise BigtrainError(
                f"{self.folder} holds weights twice",
                found=f"{SINGLE}, and {INDEX} that names other files",
                wanted="one of the two; transformers takes the first",
                fix="remove the one that is not this model's",
            )
        return files

    def _add(self, path: Path) -> None:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise BigtrainError(f"{path} cannot be read", found="a folder, a pipe or a device", wanted="a regular file")
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.offset_keys():
                    part: Any = file.get_slice(name)
                    dtype, shape = part.get_dtype(), torch.Size(part.get_shape())
                    if name in self._file_of:
                        raise BigtrainError(
                            f"{name} is in two files of {self.folder}",
                            found=f"{self._file_of[name].name} and {path.name}",
                            wanted="every tensor once",
                            fix="fetch the folder again",
                        )
                    self._file_of[name], self._about[name] = path, (dtype, shape)
        except FileNotFoundError:
            pickled = sorted(file.name for file in self.folder.glob("*.bin"))
            raise BigtrainError(
                f"there is no {path}",
                found=_some(pickled) if pickled else "no weights",
                wanted="weights as *.safetensors, which hold numbers and no code",
                fix="load the folder with transformers and save it again" if pickled else "fetch it again",
            ) from None
        except (SafetensorError, OSError, ValueError, TypeError, OverflowError, RuntimeError) as error:
            raise BigtrainError(f"{path} is damaged", found=str(error)[:300], fix="fetch it again") from None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")


def _shards(entries: Sequence[StoredTensor], shard_bytes: int) -> Iterator[list[StoredTensor]]:
    shard: list[StoredTensor] = []
    for entry in entries:
        if shard and sum(each.nbytes for each in shard) + entry.nbytes > shard_bytes:
            yield shard
            shard = []
        shard.append(entry)
    yield shard


def _header(shard: Sequence[StoredTensor]) -> bytes:
    entries = (HeaderEntry(entry.name, _NAMES[entry.dtype], entry.shape, entry.nbytes) for entry in shard)
    return safetensors_header(entries, {"format": "pt"})[0]


def tensor_digest(tensor: Tensor) -> str:
    """xxh3-128 of a tensor's type, shape and bytes."""
    hasher = xxhash.xxh3_128(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    hasher.update(bytes_of(tensor))
    return hasher.hexdigest()

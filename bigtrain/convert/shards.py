"""Named tensors written as safetensors files of bounded size, holding one file's worth in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_safetensors(tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int) -> None:
    """Write `model.safetensors`, or `model-00001-of-0000N.safetensors` and so on with their index.

    Args:
        tensors: names and tensors, read once and in order.
        folder: where to write; it exists.
        shard_bytes: a file holds no more than this, unless one tensor is larger.
    """
    shards: list[dict[str, int]] = []  # name -> bytes, of each file written
    pending: dict[str, Tensor] = {}

    def flush() -> None:
        save_file(pending, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append({name: tensor.nbytes for name, tensor in pending.items()})
        pending.clear()

    for name, tensor in tensors:
        if pending and sum(held.nbytes for held in pending.values()) + tensor.nbytes > shard_bytes:
            flush()
        pending[name] = tensor.contiguous()
    flush()

    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for number, file in enumerate(files):
        (folder / f"shard-{number}").rename(folder / file)
    index = {
        "metadata": {"total_size": sum(sum(shard.values()) for shard in shards)},
        "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

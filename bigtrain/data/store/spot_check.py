"""A quick look at the data before a run: some blocks of every dataset, for as long as there is time.

`bigtrain data verify` reads every byte. This finds what has happened to many of them: a file system that answers with
zeros, a copy that broke off and was padded, a folder of another build.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import xxhash

from bigtrain.data.format.manifest import FileRecord
from bigtrain.data.store.store import Dataset

BLOCKS_AT_MOST = 256
"""Of a dataset."""


@dataclass
class SpotCheck:
    """What was looked at, and what is wrong with it."""

    blocks: int = 0
    """So many were read."""
    of_blocks: int = 0
    """So many there are."""
    problems: list[str] = field(default_factory=list)


def spot_check(datasets: Sequence[Dataset], *, seconds: float, seed: int) -> SpotCheck:
    """Read blocks at random, of each dataset in turn, and compare their hashes with those of the manifest.

    Args:
        datasets: whose; remote ones are read through their cache.
        seconds: no block is begun later; at least one is read.
        seed: other seeds, such as ranks, read other blocks first.

    Raises:
        BigtrainError: a remote block cannot be read.
    """
    found = SpotCheck()
    draw = random.Random(seed)
    pools = [_drawn(dataset, draw, found) for dataset in datasets]
    end = time.monotonic() + seconds
    turns = max(map(len, pools), default=0)
    for dataset, file, index in (pool[turn] for turn in range(turns) for pool in pools if turn < len(pool)):
        if found.blocks and time.monotonic() > end:
            break
        problem = _problem(dataset, file, index)
        found.blocks += 1
        if problem is not None:
            found.problems.append(problem)
    return found


def _drawn(dataset: Dataset, draw: random.Random, found: SpotCheck) -> list[tuple[Dataset, FileRecord, int]]:
    """Some blocks of a dataset, each as likely as any other; there may be millions."""
    files = [file for shard in dataset.manifest.shards for file in shard.files]
    ends = list(accumulate(len(file.blocks) for file in files))
    blocks = ends[-1] if ends else 0
    found.of_blocks += blocks
    chosen = []
    for block in draw.sample(range(blocks), min(blocks, BLOCKS_AT_MOST)):
        which = bisect_right(ends, block)
        chosen.append((dataset, files[which], block - (ends[which - 1] if which else 0)))
    return chosen


def _problem(dataset: Dataset, file: FileRecord, index: int) -> str | None:
    size = dataset.manifest.block_bytes
    if dataset.mirror is not None:
        dataset.mirror.block(dataset.directory, file, index, size)  # compares for itself
        return None
    path = dataset.directory / file.name
    try:
        with path.open("rb") as data:
            data.seek(index * size)
            block = data.read(size)
    except OSError as error:
        return f"{path}: block {index} cannot be read: {error.strerror}"
    if xxhash.xxh3_128_hexdigest(block) != file.blocks[index]:
        return f"{path}: block {index} (from byte {index * size:,}) has another checksum"
    return None

"""A quick check of the data before a run: some blocks of every dataset, within a limit of time.

`bigtrain data verify` reads every byte. This finds damage to many bytes: a file system that returns zeros, an
incomplete copy that was padded, a folder of another build.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import xxhash

from bigtrain.base import BigtrainError
from bigtrain.data.format.file_record import FileRecord
from bigtrain.data.store.store import Dataset

BLOCKS_AT_MOST = 256
"""Limit on the blocks of a dataset that are read."""


@dataclass
class SpotCheck:
    """The number of blocks that were checked, and the problems."""

    blocks: int = 0
    """Blocks that were read."""
    of_blocks: int = 0
    """All blocks of the datasets."""
    problems: list[str] = field(default_factory=list)


def spot_check(datasets: Sequence[Dataset], *, seconds: float, seed: int) -> SpotCheck:
    """Read blocks at random, of each dataset in turn, and compare their hashes with those of the manifest.

    Args:
        datasets: the datasets to check. Remote ones are read through their cache.
        seconds: limit of time. At least one block is read.
        seed: decides the order of the blocks; ranks give different seeds.

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
    """Some blocks of a dataset, chosen with equal probability. There may be millions."""
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
        dataset.mirror.block(dataset.directory, file, index, size)  # it compares the hash itself
        return None
    path = dataset.directory / file.name
    try:
        with path.open("rb") as data:
            data.seek(index * size)
            block = data.read(size)
    except OSError as error:
        return f"{path}: block {index} cannot be read: {error.strerror}"
    try:
        wanted = file.blocks[index]
    except BigtrainError as error:  # of a part of the manifest
        return str(error)
    if xxhash.xxh3_128_hexdigest(block) != wanted:
        return f"{path}: block {index} (from byte {index * size:,}) has another checksum"
    return None

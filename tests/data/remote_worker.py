"""A process that reads random ranges through a mirror and checks each against the local shard.

    python remote_worker.py ORIGINAL MIRROR URL BUDGET SEED COUNT

Prints a line a range read, so that its parent can kill it when it is well under way; COUNT 0 reads for ever.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import count
from pathlib import Path

import numpy as np

from bigtrain.data.format.remote_files import Remote, RetryPolicy
from bigtrain.data.store.mirror import MARKER, Mirror
from bigtrain.data.store.store import Dataset

QUICK = RetryPolicy(attempts=6, total_seconds=20, attempt_seconds=1, first_pause=0.05, longest_pause=0.4)
PLACE = Path("made", "train")
VOCABULARY = 1000


def mirror_of(folder: Path, url: str, budget: int, policy: RetryPolicy = QUICK) -> Mirror:
    """The mirror in a folder that a test has put a manifest into; by its marker alone it is one."""
    marker = folder / MARKER
    if not marker.exists():
        made = folder / f"{MARKER}.{os.getpid()}"
        made.write_text(json.dumps({"url": Remote(url).url}))
        made.replace(marker)
    return Mirror(folder, url, budget, policy)


def main(original: Path, mirror: Path, url: str, budget: int, seed: int, ranges: int) -> None:
    local = Dataset(original / PLACE)
    remote = Dataset(mirror / PLACE, mirror_of(mirror, url, budget))
    rng = np.random.default_rng(seed)
    for number in range(ranges) if ranges else count():
        index = int(rng.integers(len(local.shards)))
        tokens = local.shards[index].record.tokens
        start = int(rng.integers(tokens))
        end = int(rng.integers(start + 1, start + 5000))
        found = remote.shards[index].read(start, end, VOCABULARY)
        wanted = local.shards[index].read(start, end, VOCABULARY)
        assert np.array_equal(found, wanted), (index, start, end)
        print(number, flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), sys.argv[3], *map(int, sys.argv[4:]))

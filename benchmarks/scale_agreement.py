"""What rank 0 of many pays for what all ranks do together: messages, bytes and CPU seconds, a line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Callable

from bigtrain.base import collected, collectively, first_of
from tests.scale.first_rank import FirstRank
from tests.scale.growth import cpu_seconds

SIZES = (1024, 4096, 16384)
WORK: dict[str, Callable[[FirstRank], object]] = {
    "all ranks have done something": lambda ranks: collectively(ranks, "not done", lambda: None),
    "the lowest rank's reason to stop": lambda ranks: first_of(ranks, "SIGTERM"),
    "70 bytes of each rank on rank 0": lambda ranks: collected(ranks, "not done", lambda: "x" * 70),
}


def main() -> None:
    """Measure all sizes."""
    for what, work in WORK.items():
        for size in SIZES:
            ranks = FirstRank(size)
            work(ranks)
            figures = {"messages": ranks.channel.messages["received"], "bytes": ranks.channel.bytes["received"]}
            seconds = cpu_seconds(lambda: work(FirstRank(size)))  # noqa: B023
            print(json.dumps({"what": what, "ranks": size, **figures, "cpu_seconds": float(f"{seconds:.3g}")}))


if __name__ == "__main__":
    main()

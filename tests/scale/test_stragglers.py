"""Promises of the straggler check at the size of a large job."""

import random

from bigtrain.health.stragglers import RankComparison
from tests.scale.growth import assert_grows, cpu_seconds


def test_the_comparison_of_all_ranks_grows_no_faster_than_a_sort():
    """It took a sort for every rank before: 30 s of CPU at 16,384 ranks, every 20 steps."""

    def seconds(ranks: int) -> float:
        draw = random.Random(ranks)
        comparison, hosts = RankComparison(0.2), ["host"] * ranks
        values = [draw.uniform(0.9, 1.1) for _ in range(ranks)]
        return cpu_seconds(lambda: comparison.add(values, hosts))

    assert_grows([1024, 2048, 4096, 8192, 16384], seconds, at_most=1, slack=0.4)

"""Promises of the comparisons of ranks at the size of a large job."""

import random
from types import SimpleNamespace

import torch

from bigtrain.health import replicas
from bigtrain.health.stragglers import OwnWork, RankComparison
from tests.ranks import Mailboxes, on_ranks
from tests.scale.growth import assert_grows, cpu_seconds


def test_the_comparison_of_all_ranks_grows_no_faster_than_a_sort():
    """It took a sort for every rank before: 30 s of CPU at 16,384 ranks, every 20 steps."""

    def seconds(ranks: int) -> float:
        draw = random.Random(ranks)
        comparison, hosts = RankComparison(0.2), ["host"] * ranks
        values = [draw.uniform(0.9, 1.1) for _ in range(ranks)]
        return cpu_seconds(lambda: comparison.add(values, hosts))

    assert_grows([1024, 2048, 4096, 8192, 16384], seconds, at_most=1, slack=0.4)


def traffic(ranks: int, work) -> Mailboxes:
    boxes = Mailboxes()
    results = on_ranks(ranks, work, boxes)
    assert all(result == results[0] and not isinstance(result, Exception) for result in results), results[0]
    return boxes


def test_a_window_costs_a_rank_its_own_value_and_the_news():
    """Rank 0 hears of all; another rank sends what the subtree below it says, and hears what has changed."""

    def compared(tree):
        settings = SimpleNamespace(
            guard=SimpleNamespace(straggler_every_steps=1, straggler_share=0.2),
            engine=SimpleNamespace(zero_stage=1),
            model=SimpleNamespace(hidden_size=8, intermediate_size=8),
        )
        own = OwnWork(settings, tree)
        return [own.add(0.1 + 0.4 * (tree.rank == 5)) for _ in range(5)]

    boxes = {ranks: traffic(ranks, compared) for ranks in (16, 64, 256)}
    assert_grows([16, 64, 256], lambda ranks: boxes[ranks].received[0], at_most=1)
    last = {ranks: boxes[ranks].received[ranks - 1] for ranks in boxes}
    assert len(set(last.values())) == 1, "a rank hears as much however many there are"


def test_the_comparison_of_weights_costs_a_rank_one_fingerprint():
    """Equal fingerprints become one on the way, so that rank 0 hears eight times as much as it says, or less."""

    def compared(tree):
        weights = {f"layer.{number}": torch.ones(4) for number in range(50)}
        engine = SimpleNamespace(copies=lambda: weights, parts=lambda: [])
        topology = SimpleNamespace(
            rank=tree.rank, world_size=tree.world_size, tensor_size=1, shard_rank=0, reduce=tree.reduce,
            broadcast=tree.broadcast,
        )  # fmt: skip
        return replicas.compare(engine, topology)

    boxes = {ranks: traffic(ranks, compared) for ranks in (16, 64, 256)}
    most = {ranks: max(box.received[rank] for rank in range(ranks)) for ranks, box in boxes.items()}
    assert max(most.values()) < 1.5 * most[64] and most[256] < 4000, most

"""What ranks do together costs rank 0 the logarithm of their number, and what it gathers no more than their number."""

from __future__ import annotations

from bigtrain.base import BigtrainError, collected, collectively, first_of, gather
from bigtrain.base.rank_tree import CHILDREN
from tests.scale.first_rank import FirstRank
from tests.scale.growth import assert_grows

SIZES = [64, 512, 4096]


def test_rank_0_gathers_as_many_values_as_there_are_ranks() -> None:
    for size in (1, 2, 7, 8, 40, 64, 1024, 4096):
        assert gather(FirstRank(size), "x") == ["x"] * size


def test_an_agreement_costs_the_first_rank_a_few_messages() -> None:
    def messages(size: int) -> int:
        ranks = FirstRank(size)
        collectively(ranks, "not done", lambda: None)
        counts = ranks.channel.messages
        assert counts["received"] == counts["sent"] <= (CHILDREN - 1) * len(str(size))
        return counts["received"]

    assert_grows(SIZES, messages, at_most=0.25)


def test_an_error_of_all_ranks_is_no_longer_for_more_of_them() -> None:
    def length(size: int) -> int:
        def refuse() -> None:
            raise OSError("No space left on device")

        try:
            collectively(FirstRank(size), "the checkpoint could not be written", refuse)
        except BigtrainError as error:
            return len(str(error))
        raise AssertionError("nothing was refused")

    assert_grows(SIZES, length, at_most=0.05, slack=0.02)


def test_the_lowest_value_moves_the_same_bytes_over_each_link() -> None:
    def bytes_received(size: int) -> int:
        ranks = FirstRank(size)
        assert first_of(ranks, "SIGTERM") == "SIGTERM"
        return ranks.channel.bytes["received"]

    assert_grows(SIZES, bytes_received, at_most=0.3)


def test_results_for_the_first_rank_are_linear_in_the_ranks() -> None:
    def bytes_received(size: int) -> int:
        ranks = FirstRank(size)
        assert len(collected(ranks, "not done", lambda: 1.5)) == size
        return ranks.channel.bytes["received"]

    assert_grows(SIZES, bytes_received, at_most=1)

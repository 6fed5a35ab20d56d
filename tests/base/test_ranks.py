"""Ranks hear rank 0, tell rank 0, and go on or stop with the same message, however many they are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base import (
    ALONE,
    BigtrainError,
    Ranks,
    RankTree,
    collected,
    collectively,
    first_of,
    gather,
    on_every_rank,
    on_first_rank,
)
from tests.ranks import Mailboxes, on_ranks

worlds = st.sampled_from([1, 2, 7, 8, 9, 15, 16, 63, 64, 65, 73])


@settings(max_examples=15, deadline=None)
@given(worlds)
def test_values_come_in_rank_order_and_go_to_their_rank(world: int) -> None:
    def work(ranks: RankTree) -> tuple[object, ...]:
        up = gather(ranks, f"of {ranks.rank}")
        down = ranks.broadcast({"from": ranks.rank})
        own = ranks.scatter([number * number for number in range(world)] if ranks.rank == 0 else None)
        return up, down, own, ranks.broadcast(ranks.reduce(ranks.rank, max))

    results = on_ranks(world, work)
    assert results[0][0] == [f"of {rank}" for rank in range(world)]
    assert all(result[0] is None for result in results[1:])
    assert [result[1:] for result in results] == [({"from": 0}, rank * rank, world - 1) for rank in range(world)]


@given(worlds, st.data())
@settings(max_examples=15, deadline=None)
def test_the_lowest_rank_that_has_a_value_is_heard(world: int, data: st.DataObject) -> None:
    having = data.draw(st.sets(st.integers(0, world - 1)))
    found = on_ranks(world, lambda ranks: first_of(ranks, f"rank {ranks.rank}" if ranks.rank in having else None))
    assert found == [f"rank {min(having)}" if having else None] * world


def refuse(ranks: Ranks, failing: Sequence[int], cause: str) -> int:
    if ranks.rank in failing:
        raise BigtrainError(cause.format(rank=ranks.rank))
    return ranks.rank


def test_a_failure_is_one_message_on_all_ranks_whatever_their_number() -> None:
    def work(ranks: RankTree) -> object:
        return collectively(ranks, "it cannot be done", lambda: refuse(ranks, range(3, 60), "the disk is full"))

    errors = on_ranks(64, work)
    assert len({str(error) for error in errors}) == 1 and all(error.shared for error in errors)
    assert "rank 3 on " in str(errors[0]) and " and 56 more: the disk is full" in str(errors[0])
    assert len(str(errors[0]).splitlines()) == 2


def test_causes_that_differ_are_shown_up_to_a_few() -> None:
    def work(ranks: RankTree) -> object:
        return collected(ranks, "it cannot be done", lambda: refuse(ranks, range(60), "file {rank} is missing"))

    (text,) = {str(error) for error in on_ranks(64, work)}
    assert [f": file {rank} is missing" in text for rank in range(6)] == [True] * 4 + [False] * 2
    assert "and 56 more ranks, each with a cause of its own" in text


def test_what_all_ranks_find_wrong_is_said_once_as_it_is() -> None:
    errors = on_ranks(9, lambda ranks: collectively(ranks, "no", lambda: refuse(ranks, range(9), "the same")))
    assert {str(error) for error in errors} == {"the same"}


def test_results_are_those_of_this_rank_or_of_all_on_the_first() -> None:
    assert on_ranks(9, lambda ranks: collectively(ranks, "no", lambda: ranks.rank)) == list(range(9))
    assert on_ranks(9, lambda ranks: collected(ranks, "no", lambda: ranks.rank)) == [list(range(9)), *[[]] * 8]
    assert on_ranks(9, lambda ranks: on_first_rank(ranks, lambda: ranks.rank + 5)) == [5] * 9
    assert on_ranks(9, lambda ranks: on_every_rank(ranks, lambda: ranks.rank)) == list(range(9))
    assert collected(ALONE, "no", lambda: "x") == ["x"] and gather(ALONE, 1) == [1]


@pytest.mark.parametrize("agree", [on_first_rank, on_every_rank])
def test_an_error_of_one_rank_ends_all_with_it(agree) -> None:
    errors = on_ranks(9, lambda ranks: agree(ranks, lambda: refuse(ranks, [0, 4], "of rank {rank}")))
    assert {str(error) for error in errors} == {"of rank 0"}


@pytest.mark.parametrize("world", [8, 64, 512])
def test_no_rank_but_the_first_moves_more_than_a_level_of_the_tree(world: int) -> None:
    """An agreement moves about the same bytes over each link, so that all ranks together are linear in their number."""
    boxes = Mailboxes()
    on_ranks(world, lambda ranks: collectively(ranks, "no", lambda: None), boxes)
    levels = {8: 1, 64: 2, 512: 3}[world]
    longest = max(map(len, (b"x" * 400,)))
    assert max(boxes.sent.values()) <= 7 * levels * longest
    assert sum(boxes.sent.values()) <= 2 * world * longest

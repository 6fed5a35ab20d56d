"""Which nodes form a round: decisions of the first node, without a network or a clock."""

import pytest

from bigtrain.launcher.membership import Limits, Membership, NotMetError


def meeting(least: int, most: int, **limits: float) -> Membership:
    return Membership(Limits(least, most, **{"join": 100, "last_call": 10, "silence": 15, **limits}), first="n0")


def come(members: Membership, now: float, *numbers: int, attempt: int = 1) -> None:
    for number in numbers:
        members.join(f"n{number}", attempt, number, f"host-{number}", now)


def names(round_: object) -> list[str]:
    assert isinstance(round_, list)
    return [node.name for node in round_]


def beat(members: Membership, now: float, *silent: str) -> None:
    members.hear({name: b"%f" % now for name in members.nodes if name not in silent}, now)


def test_a_fixed_number_of_nodes_starts_in_the_order_of_their_numbers():
    members = meeting(3, 3)
    come(members, 0, 2, 0)
    assert members.settle(0) is None
    come(members, 5, 1)
    assert names(members.settle(5)) == ["n0", "n1", "n2"]
    assert members.settle(6) is None and members.waiting(6) == 0


def test_nodes_without_numbers_keep_their_order_and_the_first_is_first():
    members = meeting(3, 3)
    for name in ("b", "n0", "a"):
        members.join(name, 1, None, name, 0)
    assert names(members.settle(0)) == ["n0", "b", "a"]
    for name in ("a", "n0", "b"):
        members.join(name, 2, None, name, 1)
    assert names(members.settle(1)) == ["n0", "b", "a"]


def test_nodes_that_never_come_are_named():
    members = meeting(4, 4)
    come(members, 0, 0, 2)
    assert members.settle(0) is None
    beat(members, 100.5)
    with pytest.raises(NotMetError, match="2 of 4 nodes came within 100 s; missing: node 1, 3"):
        members.settle(100.5)


def test_a_machine_that_has_another_one_s_number_is_named():
    members = meeting(2, 2)
    come(members, 0, 0)
    members.join("again", 1, 0, "host-x", 0)
    assert members.settle(0) is None
    beat(members, 101)
    with pytest.raises(NotMetError, match="missing: node 1; node 0 came twice, the second time from host-x"):
        members.settle(101)


def test_a_restart_waits_for_every_living_node_of_the_round():
    """All nodes restart together; the round of MIN:MAX does not start without one that is about to join again."""
    members = meeting(1, 3, last_call=0)
    come(members, 0, 0, 1, 2)
    assert names(members.settle(0)) == ["n0", "n1", "n2"]
    come(members, 5, 0, attempt=2)
    assert members.settle(5) is None
    come(members, 6, 1, attempt=2)
    beat(members, 12, "n2")
    assert members.settle(12) is None, "node 2 is alive until its heartbeats have been missing for 15 s"
    beat(members, 16, "n2")
    assert names(members.settle(16)) == ["n0", "n1"]


def test_a_node_that_has_left_is_not_waited_for():
    members = meeting(1, 3, last_call=0)
    come(members, 0, 0, 1, 2)
    members.settle(0)
    members.leave("n2")
    come(members, 1, 0, 1, attempt=2)
    assert names(members.settle(1)) == ["n0", "n1"]


def test_more_nodes_have_time_until_the_last_call_is_over():
    members = meeting(1, 3)
    come(members, 0, 0)
    assert members.settle(0) is None
    come(members, 5, 1)
    assert members.settle(9.9) is None
    assert names(members.settle(10)) == ["n0", "n1"]


def test_a_late_node_is_counted_as_waiting_only_where_there_is_room_for_it():
    members = meeting(1, 3, last_call=0)
    come(members, 0, 0, 1)
    members.settle(0)
    come(members, 1, 2)
    assert members.waiting(1) == 1
    come(members, 2, 0, 1, attempt=2)
    assert names(members.settle(2)) == ["n0", "n1", "n2"]
    members.join("more", 1, 3, "host-3", 3)
    assert members.waiting(3) == 0


def test_a_node_in_place_of_a_dead_one_is_taken_in_and_a_double_is_not():
    """For a fixed number of nodes too: a pod that was started again has the number of the one before."""
    members = meeting(2, 2)
    come(members, 0, 0, 1)
    members.settle(0)
    members.join("new", 1, 1, "host-9", 1)
    beat(members, 10)
    assert members.waiting(10) == 0, "node 1 is alive"
    beat(members, 26, "n1")
    assert members.waiting(26) == 1
    come(members, 27, 0, attempt=2)
    assert names(members.settle(27)) == ["n0", "new"]


def test_a_node_that_was_silent_for_a_while_is_still_one_of_the_round():
    members = meeting(1, 2, last_call=0)
    come(members, 0, 0, 1)
    members.settle(0)
    beat(members, 20, "n1")
    beat(members, 21)
    come(members, 22, 0, attempt=2)
    assert members.settle(22) is None
    come(members, 23, 1, attempt=2)
    assert names(members.settle(23)) == ["n0", "n1"]


def test_a_member_that_still_runs_hears_of_a_round_that_forms() -> None:
    """Its ranks were stopped for the new round: without this it would take their end for that of the job."""
    membership = Membership(Limits(1, 3, join=60, last_call=1, silence=60), "a")
    for name in ("a", "b"):
        membership.join(name, 1, None, name, 0.0)
    assert membership.waiting(0.0) == 0
    assert membership.settle(0.0) is None
    assert [node.name for node in membership.settle(2.0) or []] == ["a", "b"] and membership.waiting(2.0) == 0
    membership.join("c", 1, None, "c", 3.0)
    assert membership.waiting(3.0) == 1
    membership.join("a", 2, None, "a", 4.0)
    assert membership.settle(4.0) is None and membership.waiting(4.0) == 2
    membership.join("b", 2, None, "b", 5.0)
    assert len(membership.settle(5.0) or []) == 3 and membership.waiting(5.0) == 0

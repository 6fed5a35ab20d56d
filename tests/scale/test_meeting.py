"""Launchers meet at 2,048 nodes: torch's own rendezvous collapses from about 700, and never completes at 1,536."""

import os

import pytest

from tests.scale.growth import assert_grows
from tests.scale.meeting import measure_meeting, simulate

SIZES = (16, 64, 256)
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:3")  # as launch/environment.sh


def test_2048_launchers_meet_run_and_restart_in_virtual_time():
    """All have their ranks within seconds of the last arrival, none is taken for dead, and no node restarts alone."""
    found = simulate(2_048)
    assert found["rounds"] == 2 and found["silent_nodes"] == 0, found
    assert found["met_after_the_last_came_s"] + found["all_know_their_ranks_s"] < 5, found
    assert found["met_again_after_the_last_s"] < 5, found
    assert found["store_busy_running"] < 0.25 and found["longest_answer_s"] < 1, found


def test_the_store_s_work_grows_no_faster_than_the_number_of_nodes():
    assert_grows((64, 256, 1_024), lambda nodes: simulate(nodes, running=10)["store_busy_joining_s"], at_most=1)


@pytest.fixture(scope="module")
def measured() -> dict[int, dict[str, float]]:
    return {nodes: measure_meeting(nodes) for nodes in SIZES}


def test_256_light_launchers_meet_twice_over_real_sockets(measured):
    """A node asks for its own keys only, the same few at any number of nodes; the first one reads all."""
    small, large = measured[SIZES[0]], measured[SIZES[-1]]
    assert large["keys_a_node_most"] == small["keys_a_node_most"] <= 6, large
    assert large["questions_of_several_keys_a_node"] == 0, large


def test_the_first_node_s_keys_grow_no_faster_than_the_number_of_nodes(measured):
    assert_grows(SIZES, lambda nodes: measured[nodes]["keys_of_first_node"], at_most=1)

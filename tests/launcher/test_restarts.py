"""The launcher's decisions: which worker caused the end, and how often all are started again."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.exit_status import CORRUPTED, CRASHED, DONE, FINAL, HUNG, STOPPED, USAGE, WRONG, describe, of_shell
from bigtrain.launcher.restarts import Restarts, cause

statuses = st.sampled_from([DONE, WRONG, USAGE, CRASHED, HUNG, CORRUPTED, STOPPED, -9, -11, 143, 137])


@given(st.dictionaries(st.integers(0, 63), statuses))
def test_a_killed_rank_is_the_cause_before_those_that_lost_it(ended):
    """Ranks that lost their connection to a killed one crash as well, and are not the cause."""
    died = cause(ended, {})
    if not any(ended.values()):
        assert died is None
        return
    assert ended[died.rank] == died.status != 0
    assert died.may_follow_another == all(status >= 0 for status in ended.values())
    if any(status < 0 for status in ended.values()):
        assert died.status < 0 and not died.final
    elif HUNG in ended.values():
        assert died.status == HUNG
    elif FINAL & (set(ended.values()) - {DONE}):
        assert died.final


@pytest.mark.parametrize("status", [WRONG, USAGE, STOPPED])
def test_a_final_status_is_the_cause_although_others_crashed_of_it(status):
    """A worker that ends with a final status is not started again, although others crashed because of it."""
    died = cause({0: CRASHED, 1: status, 2: CRASHED}, {0: 5, 2: 6})
    assert (died.rank, died.final) == (1, True)


@given(st.sets(st.integers(0, 7), min_size=1), st.permutations(range(8)))
def test_the_first_crash_is_the_cause_though_its_process_may_end_last(ended, order):
    crashed_at = {rank: time for time, rank in enumerate(order, 1)}
    assert cause(dict.fromkeys(ended, CRASHED), crashed_at) == (order[0], CRASHED)
    assert cause({}, crashed_at) is None, "it may still report more, and none has ended because of it yet"
    assert cause({**dict.fromkeys(ended, CRASHED), 8: -9}, crashed_at) == (8, -9)
    assert cause({**dict.fromkeys(ended, CRASHED), 8: 143}, crashed_at) == (8, 143), "it could report nothing"


@given(limit=st.integers(0, 5), commits=st.lists(st.integers(-1, 4), max_size=40))
def test_restarts_are_bounded_without_progress_and_only_then(limit, commits):
    restarts, newest, allowed_since, best = Restarts(limit), -1, 0, -1
    for step in commits:
        newest = max(newest, step)
        if newest > best:
            best, allowed_since = newest, 0
        assert restarts.allow(newest) == (allowed_since < limit)
        allowed_since += allowed_since < limit
        assert restarts.since_progress <= limit


def test_a_run_that_commits_between_failures_is_restarted_without_limit():
    restarts = Restarts(1)
    assert all(restarts.allow(step) for step in range(100)) and restarts.total == 100
    assert not restarts.allow(99)


def test_a_status_is_described_and_converted_to_that_of_a_shell():
    assert describe(-signal.SIGKILL) == "was killed by SIGKILL" and of_shell(-signal.SIGKILL) == 137
    assert "hung" in describe(HUNG) and of_shell(HUNG) == HUNG
    assert describe(9) == "left with status 9"

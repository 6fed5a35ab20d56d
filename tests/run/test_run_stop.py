"""A request to stop is one request, however many processes hand it on; a second one ends the process at once."""

import signal

import pytest

from bigtrain.run import stop
from bigtrain.run.stop import StopRequest


class Left(Exception):
    pass


@pytest.fixture
def clock(monkeypatch):
    def leave(status: int) -> None:
        raise Left(status)

    now = [100.0]
    monkeypatch.setattr(stop.os, "_exit", leave)
    monkeypatch.setattr(stop.time, "monotonic", lambda: now[0])
    return now


def test_a_signal_that_reaches_a_rank_by_two_ways_is_one_request(clock):
    request = StopRequest()
    request._handle(signal.SIGTERM, None)
    clock[0] += 0.9 * stop.ONE_REQUEST_SECONDS
    request._handle(signal.SIGTERM, None)
    assert request.reason == "SIGTERM"


def test_a_second_request_leaves_at_once(clock):
    request = StopRequest()
    request._handle(signal.SIGUSR1, None)
    clock[0] += 1.1 * stop.ONE_REQUEST_SECONDS
    with pytest.raises(Left, match=str(128 + signal.SIGTERM)):
        request._handle(signal.SIGTERM, None)
    assert request.reason == "SIGUSR1"


def test_a_signal_behind_a_stop_that_was_decided_here_does_not_cut_it_short(clock):
    request = StopRequest()
    request.ask("the end of the job's time")
    clock[0] += 100 * stop.ONE_REQUEST_SECONDS
    request._handle(signal.SIGTERM, None)  # the scheduler's own warning
    assert request.reason == "the end of the job's time"
    clock[0] += 1.1 * stop.ONE_REQUEST_SECONDS
    with pytest.raises(Left):
        request._handle(signal.SIGTERM, None)

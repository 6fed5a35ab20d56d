"""A request to stop is one request, however many processes hand it on; a second order ends the process at once."""

import signal

import pytest

from bigtrain.train import stop
from bigtrain.train.stop import StopRequest


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
    clock[0] += 0.9 * stop.ONE_ORDER_SECONDS
    request._handle(signal.SIGTERM, None)
    assert request.reason == "SIGTERM"


def test_a_second_order_leaves_at_once(clock):
    request = StopRequest()
    request._handle(signal.SIGTERM, None)
    clock[0] += 1.1 * stop.ONE_ORDER_SECONDS
    with pytest.raises(Left, match=str(128 + signal.SIGINT)):
        request._handle(signal.SIGINT, None)
    assert request.reason == "SIGTERM"


@pytest.mark.parametrize("warning", [signal.SIGUSR1, signal.SIGHUP])
def test_repeated_warnings_do_not_interrupt_the_save(clock, warning):
    """Neither a warning that is repeated nor the order after it cuts the save short."""
    request = StopRequest()
    for number in (warning, warning, signal.SIGTERM, warning):
        request._handle(number, None)
        clock[0] += 1.1 * stop.ONE_ORDER_SECONDS
    assert request.reason == warning.name
    with pytest.raises(Left):
        request._handle(signal.SIGTERM, None)


def test_a_signal_after_a_stop_decided_here_does_not_interrupt_it(clock):
    """A signal behind a stop that was decided here does not cut it short."""
    request = StopRequest()
    request.ask("the end of the job's time")
    clock[0] += 100 * stop.ONE_ORDER_SECONDS
    request._handle(signal.SIGTERM, None)  # the scheduler's own
    assert request.reason == "the end of the job's time"
    clock[0] += 1.1 * stop.ONE_ORDER_SECONDS
    with pytest.raises(Left):
        request._handle(signal.SIGTERM, None)

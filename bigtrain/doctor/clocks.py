"""The check of the hosts' clocks, measured as NTP does it: the fastest round trip has the smallest error.

A rank asks through the store, and the leader answers with its time. It did so in the middle of the round trip, give or
take half of it (Mills, RFC 5905, section 8).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from bigtrain.base import duration
from bigtrain.doctor.check import CheckContext, Measured
from bigtrain.doctor.finding import CheckFinding

ROUNDS = 8
"""Round trips of each host."""
PATIENCE_SECONDS = 2.0
"""Seconds for one answer."""
TOTAL_SECONDS = 8.0
"""Seconds after which the remaining hosts are not measured; of more hosts it is more."""
WARNS, FAILS = 1.0, 300.0
"""Seconds of difference. One second disorders logs and records. S3 refuses requests that are off by 15 minutes, so 5
minutes are a failure."""


def measure_clock(context: CheckContext) -> dict[str, float] | None:
    """Return the seconds that this host's clock is ahead of the leader's, and their error; None without an answer."""
    meeting = context.meeting
    if meeting.leads:
        _answer(context)
        return {"ahead": 0.0, "error": 0.0}
    best: tuple[float, float] | None = None
    try:
        for turn in range(ROUNDS):
            asked, started = _now(), time.monotonic()
            meeting.post(f"clock/{turn}", True)
            seconds = meeting.longer(TOTAL_SECONDS) if turn == 0 else PATIENCE_SECONDS
            theirs = meeting.receive(f"clock/{meeting.rank}/{turn}", seconds)
            round_trip = time.monotonic() - started
            if best is None or round_trip / 2 < best[1]:
                best = asked + round_trip / 2 - theirs, round_trip / 2
    except TimeoutError:
        pass
    return None if best is None else {"ahead": best[0], "error": best[1]}


def _answer(context: CheckContext) -> None:
    meeting = context.meeting
    end, present = time.monotonic() + meeting.longer(TOTAL_SECONDS), set(meeting.present)
    for rank in [ranks[0] for ranks in meeting.hosts.values() if ranks[0] in present]:
        for turn in range(ROUNDS if rank != meeting.rank else 0):
            if time.monotonic() > end or not meeting.gather(f"clock/{turn}", [rank], PATIENCE_SECONDS):
                break
            meeting.publish(f"clock/{rank}/{turn}", _now())


def _now() -> float:
    return time.time()


def assess_clocks(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Name the hosts whose clock is off by more than a second, after the error of the measurement."""
    known: dict[int, Any] = {rank: each for rank, each in measured.items() if each is not None}
    off = {rank: each for rank, each in known.items() if abs(each["ahead"]) - each["error"] > WARNS}
    for rank, each in off.items():
        by = abs(each["ahead"])
        ours = context.meeting.label([context.meeting.rank])
        leads = "is ahead of" if each["ahead"] > 0 else "lags"
        yield CheckFinding(
            "clocks",
            "failed" if by - each["error"] > FAILS else "warning",
            f"the clock of {context.meeting.label([rank])} {leads} that of {ours} by "
            f"{duration(by) if by > 60 else f'{by:.2f} s'}",
            f"within {WARNS:g} s: records, logs and the end of the walltime use it",
            "start time synchronisation on that host (chronyc tracking, timedatectl)",
        )
    if unknown := [rank for rank, each in measured.items() if each is None]:
        yield CheckFinding(
            "clocks",
            "warning",
            f"the clocks of {len(unknown)} of {len(measured)} hosts were not compared: there was no time left",
        )
    most = max(known.values(), key=lambda each: abs(each["ahead"]), default={"ahead": 0.0, "error": 0.0})
    context.measured["clock_seconds"] = most
    within = f"all within {abs(most['ahead']) + most['error']:.1g} s" if len(known) > 1 else "one host"
    yield CheckFinding("clocks", "ok", within)

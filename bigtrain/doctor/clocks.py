"""By how much the hosts' clocks differ, as in NTP: the question that came back soonest bounds the error best.

A rank asks through the store, the leader answers with its time, and the middle between asking and hearing is when it
did, give or take half of the way there and back (Mills, RFC 5905, section 8).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from bigtrain.base.format import duration
from bigtrain.doctor.check import Measured, Patient
from bigtrain.doctor.finding import Finding

ROUNDS = 8
PATIENCE_SECONDS = 2.0
"""For one answer."""
TOTAL_SECONDS = 8.0
"""Hosts whose turn has not come by then are not measured."""
WARNS, FAILS = 1.0, 300.0
"""Seconds. One disorders logs and records; S3 refuses requests that are off by fifteen minutes, so five are bad."""


def measure_clock(patient: Patient) -> dict[str, float] | None:
    """Seconds that this host's clock is ahead of the leader's, and how far that can be wrong; None: it had no turn."""
    meeting = patient.meeting
    if meeting.leads:
        _answer(patient)
        return {"ahead": 0.0, "error": 0.0}
    best: tuple[float, float] | None = None
    try:
        for turn in range(ROUNDS):
            asked, began = _now(), time.monotonic()
            meeting.post(f"clock/{turn}", True)
            theirs = meeting.hear(f"clock/{meeting.rank}/{turn}", TOTAL_SECONDS if turn == 0 else PATIENCE_SECONDS)
            way = time.monotonic() - began
            if best is None or way / 2 < best[1]:
                best = asked + way / 2 - theirs, way / 2
    except TimeoutError:
        pass
    return None if best is None else {"ahead": best[0], "error": best[1]}


def _answer(patient: Patient) -> None:
    meeting, end = patient.meeting, time.monotonic() + TOTAL_SECONDS
    for rank in [ranks[0] for ranks in meeting.hosts.values() if ranks[0] in meeting.present]:
        for turn in range(ROUNDS if rank != meeting.rank else 0):
            if time.monotonic() > end or not meeting.gather(f"clock/{turn}", [rank], PATIENCE_SECONDS):
                break
            meeting.tell(f"clock/{rank}/{turn}", _now())


def _now() -> float:
    return time.time()


def judge_clocks(measured: Measured, patient: Patient) -> Iterator[Finding]:
    """Who is off by more than a second, and whether it is for certain."""
    known: dict[int, Any] = {rank: each for rank, each in measured.items() if each is not None}
    off = {rank: each for rank, each in known.items() if abs(each["ahead"]) - each["error"] > WARNS}
    for rank, each in off.items():
        by = abs(each["ahead"])
        ours = patient.meeting.who([patient.meeting.rank])
        ahead = "ahead of" if each["ahead"] > 0 else "behind"
        yield Finding(
            "clocks",
            "failed" if by - each["error"] > FAILS else "warning",
            f"the clock of {patient.meeting.who([rank])} is {duration(by) if by > 60 else f'{by:.2f} s'} "
            f"{ahead} that of {ours}",
            f"within {WARNS:g} s: records, logs and the end of the walltime go by it",
            "start time synchronisation on that host (chronyc tracking, timedatectl)",
        )
    if unknown := [rank for rank, each in measured.items() if each is None]:
        yield Finding(
            "clocks",
            "warning",
            f"{len(unknown)} of {len(measured)} hosts' clocks were not compared in the time there is",
        )
    most = max(known.values(), key=lambda each: abs(each["ahead"]), default={"ahead": 0.0, "error": 0.0})
    patient.measured["clock_seconds"] = most
    within = f"all within {abs(most['ahead']) + most['error']:.1g} s" if len(known) > 1 else "one host"
    yield Finding("clocks", "ok", within)

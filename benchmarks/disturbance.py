"""Kill -9 at random instants: a command is started again and again until it ends by itself.

The instants are those of a Poisson process: every moment of a command's life, start-up and last breath included, is as
likely to be hit as any other, however often it was hit before.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

END_SECONDS = 120.0
"""What is left of a command must be gone so long after a kill."""
WORK_SECONDS = 1800.0
"""A start that is not killed must end by itself within this."""

PR_SET_PDEATHSIG = 1

Victims = Callable[[psutil.Process, random.Random], tuple[str, list[psutil.Process]]]
"""Chooses, among a process and its descendants, whom to kill; names the choice."""


@dataclass(frozen=True)
class Command:
    """A program as a user starts it; its output goes to a log."""

    arguments: Sequence[str | Path]
    folder: Path
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> psutil.Popen:
        """Start it as the leader of a session of its own."""
        with self.log.open("ab") as log:
            return psutil.Popen(
                [*map(str, self.arguments)],
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def run(self) -> float:
        """Run it undisturbed; returns the seconds it took. Raises RuntimeError unless it ends with status 0."""
        started = time.perf_counter()
        self.check(self.start().wait(WORK_SECONDS))
        return time.perf_counter() - started

    def check(self, status: int) -> None:
        """Raise RuntimeError, with the end of the log, for a status other than 0."""
        if status != 0:
            tail = self.log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{' '.join(map(str, self.arguments))} left with status {status}:\n{tail}")


@dataclass
class Disturbed:
    """What one piece of work went through until it was done."""

    seconds: float = 0.0
    """Of all its starts together."""
    kills: list[tuple[str, str]] = field(default_factory=list)
    """(who was killed, what was going on) of each."""

    def lost(self, undisturbed_seconds: float) -> float:
        """Seconds that a kill cost, start-up and work done again together, on average over its kills."""
        return (self.seconds - undisturbed_seconds) / len(self.kills)


def disturb(
    command: Callable[[int], Command],
    victims: Victims,
    going_on: Callable[[], str],
    *,
    kills: int,
    mean_seconds: float,
    moments: random.Random,
) -> Disturbed:
    """Start a piece of work until it is done, killing it at most `kills` times.

    Args:
        command: what to start, by the number of the start.
        victims: whom to kill.
        going_on: names what a kill interrupted; called when all processes are gone.
        kills: no more than so many; behind them the work goes on undisturbed.
        mean_seconds: between two kills, on average.
        moments: the source of chance.

    Raises:
        RuntimeError: a start that was not killed failed, or something outlived a kill by END_SECONDS.
    """
    work = Disturbed()
    while True:
        started = time.perf_counter()
        current = command(len(work.kills))
        process = current.start()
        delay = moments.expovariate(1 / mean_seconds) if len(work.kills) < kills else WORK_SECONDS
        try:
            current.check(process.wait(delay))
        except psutil.TimeoutExpired:
            who, status = _kill(process, victims, moments)
            work.seconds += time.perf_counter() - started
            if status == 0:  # it had just ended
                return work
            work.kills.append((who, going_on()))
        else:
            work.seconds += time.perf_counter() - started
            return work


def everyone(process: psutil.Process, moments: random.Random) -> tuple[str, list[psutil.Process]]:
    """Victims: the command and all that it started."""
    return "everyone", [process, *process.children(recursive=True)]


def _kill(process: psutil.Popen, victims: Victims, moments: random.Random) -> tuple[str, int | None]:
    """Kill, and wait until nobody of the family is left; returns who was chosen, and the command's status."""
    _hold(process)  # it must not start another process between the choice and the kill
    family = [process, *process.children(recursive=True)]
    who, chosen = victims(process, moments)
    for victim in chosen:
        _signal(victim.kill)
    _signal(process.resume)
    _, alive = psutil.wait_procs(family, END_SECONDS)
    if alive:
        for survivor in alive:
            _signal(survivor.kill)
        raise RuntimeError(f"{len(alive)} process(es) alive {END_SECONDS} s after a kill of {who}: {alive}")
    return who, process.returncode


def _hold(process: psutil.Process) -> None:
    _signal(process.suspend)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        try:
            if process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.001)


def _end_with_parent() -> None:
    """In the child: ask for SIGTERM when whoever started it dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal(send: Callable[[], None]) -> None:
    """Signal a process that may have ended in the meantime."""
    with suppress(psutil.NoSuchProcess):
        send()

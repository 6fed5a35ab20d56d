"""Runs of a fault scenario: started by the launcher as a user does it, and compared with a run without faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bigtrain.base.faults import FAULT, MARKS
from bigtrain.checkpoint import StorageTiers, newest_verified, tensor_digests
from bigtrain.rundir.json_lines import read_json_lines
from tests.system.run_sandbox import RunSandbox, curve

PATIENCE_SECONDS = 300.0
"""For a start and what it is to do, on a machine with ten times the load; what takes longer hangs."""


@dataclass
class Outcome:
    """What became of one fault."""

    noticed_after: float | None = None
    """Seconds from the fault to the message."""
    resumed_after: float | None = None
    """Seconds from the fault to the end of the first step that follows it."""
    steps_repeated: int = 0
    """Steps that had been done and were done again."""
    remark: str = ""


class Launched:
    """`python -m bigtrain.cli.torchrun ... -m bigtrain train CONFIG`, and every line it prints with its time."""

    def __init__(
        self,
        sandbox: RunSandbox,
        *overrides: str,
        processes: int = 2,
        restarts: int = 0,
        orders: str = "",
        environment: dict[str, str] | None = None,
        under: tuple[str, ...] = (),
        rendezvous: tuple[str, ...] = ("--standalone",),
    ) -> None:
        """Start it.

        Args:
            restarts: how many the launcher may make by itself.
            orders: of faults, for BIGTRAIN_FAULT; each is carried out once, however often the run starts.
            under: a command that the launcher is started by.
        """
        self.sandbox, self._patience = sandbox, PATIENCE_SECONDS * (1 + restarts / 3)
        self._lines_before, self._starts_before = len(steps_done(sandbox)), len(starts(sandbox))
        marks = sandbox.directory / "marks"
        marks.mkdir(exist_ok=True)
        command = [
            *(*under, sys.executable, "-m", "bigtrain.cli.torchrun", *rendezvous, f"--nproc-per-node={processes}"),
            *(f"--max-restarts={restarts}", "-m", "bigtrain", "train", str(sandbox.config), *overrides),
        ]
        self.began = time.time()
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=sandbox.directory,
            start_new_session=True,
            env={**os.environ, FAULT: orders, MARKS: str(marks), **(environment or {})},
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.time(), line.rstrip("\n")))

    @property
    def output(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def heard(self, *words: str, since: float = 0.0, until: float = float("inf")) -> float | None:
        """When the first line came that has all these words."""
        times = (at for at, line in self.lines if since <= at < until and all(word in line for word in words))
        return next(times, None)

    def listen_for(self, *words: str, since: float = 0.0) -> float:
        """Wait for such a line."""
        self.wait_until(lambda: self.heard(*words, since=since) is not None, f"{words} was not said")
        at = self.heard(*words, since=since)
        assert at is not None
        return at

    def wait_for_steps(self, steps: int) -> None:
        """Until so many were done since it was launched."""
        self.wait_until(lambda: len(steps_done(self.sandbox)) >= self._lines_before + steps, f"no {steps} steps")

    def wait_until(self, condition: Callable[[], bool], otherwise: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < end and self.process.poll() is None, f"{otherwise}:\n{self.output[-6000:]}"
            time.sleep(0.02)

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes of the ranks."""
        found = {}
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if "RANK" in (environment := child.environ()):
                        found[int(environment["RANK"])] = child
        return found

    def starts_made(self) -> int:
        """How many starts of this launch have come to their first step."""
        return len(starts(self.sandbox)) - self._starts_before

    def strikes(self) -> list[float]:
        """When the orders were carried out, in that order."""
        return sorted(mark.stat().st_mtime for mark in (self.sandbox.directory / "marks").iterdir())

    def finish(self, status: int | None = 0) -> int:
        """Wait for the end, which has to be this status; what hangs is killed and fails."""
        try:
            self.process.wait(self._patience)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still there after {self._patience:.0f} s:\n{self.output[-6000:]}") from None
        self._listener.join(60)
        assert status in (None, self.process.returncode), f"{self.process.returncode}:\n{self.output[-6000:]}"
        return self.process.returncode

    def kill(self) -> None:
        """Make an end of it, with all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class ScenarioRuns:
    """The runs of one scenario."""

    sandbox: RunSandbox
    undisturbed: RunSandbox
    """The same configuration, to the end, by two processes to which nothing happened."""
    launched: list[Launched] = field(default_factory=list)

    def launch(self, *overrides: str, **how: object) -> Launched:
        self.launched.append(Launched(self.sandbox, *overrides, **how))  # type: ignore[arg-type]
        return self.launched[-1]

    def clear(self) -> None:
        for run in self.launched:
            if run.process.poll() is None:
                run.kill()


def starts(sandbox: RunSandbox) -> list[dict]:
    """The events with which the starts of a run began."""
    return [event for event in sandbox.events() if event["event"] in ("start", "resume")]


def steps_done(sandbox: RunSandbox) -> list[dict]:
    """Every line of metrics.jsonl, in the order of writing: repeated steps too."""
    return list(read_json_lines(sandbox.run / "metrics.jsonl"))


def after(sandbox: RunSandbox, strike: float, until: float = float("inf")) -> Outcome:
    """How a run went on after a fault, by its records: the next step, and what it did again."""
    lines = steps_done(sandbox)
    before = max((line["step"] for line in lines if line["time"] < strike), default=0)
    later = [line for line in lines if strike <= line["time"] < until]
    again = (event["time"] for event in sandbox.events() if event["event"] in ("start", "resume", "rewind"))
    began_again = next((time for time in again if strike < time < until), None)
    following = [line for line in later if began_again is None or line["time"] > began_again]
    repeated = sum(line["step"] <= before for line in following)
    resumed = round(following[0]["time"] - strike, 1) if following else None
    return Outcome(resumed_after=resumed, steps_repeated=repeated)


def assert_nothing_lost(sandbox: RunSandbox, reference: RunSandbox, *, every_line: bool = True) -> None:
    """The curve is the reference's bit for bit, repeated steps as well, and so are the last weights and moments.

    Raises:
        AssertionError: a step is missing or differs, a start went further back than what was committed, or a tensor of
            the last checkpoint differs.
    """
    assert curve(sandbox.metrics()) == curve(reference.metrics())
    if every_line:
        wanted = {line["step"]: line for line in reference.metrics()}
        for line in steps_done(sandbox):
            assert curve([line]) == curve([wanted[line["step"]]])
    committed = 0
    for event in sandbox.events():
        if event["event"] == "commit":
            committed = max(committed, event["step"])
        elif event["event"] in ("fallback", "rewind"):
            committed = 0
        elif event["event"] in ("start", "resume"):
            assert event["step"] >= committed, f"{event} though step {committed} was committed"
    assert last_digests(sandbox.run) == last_digests(reference.run) != {}


def last_digests(run: Path) -> dict[tuple[str, str], str]:
    """The hash of every tensor of the newest verified checkpoint."""
    newest = newest_verified(StorageTiers.of(run)).newest
    return tensor_digests(newest) if newest else {}


def wait_for_all(processes: Iterator[psutil.Process] | list[psutil.Process]) -> None:
    """Until these processes are gone; one that stays fails."""
    assert psutil.wait_procs(list(processes), timeout=PATIENCE_SECONDS)[1] == []

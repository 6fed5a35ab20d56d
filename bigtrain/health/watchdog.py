"""Notices that a run stands still, says who holds it up, and ends it so that a launcher can start it again.

Three threads on every rank, none of which ever waits for the training, nor for each other:

    watch      counts how long the loop has said nothing new, and decides; does nothing that can block
    courier    tells the other ranks by way of the store, and hears from them; may block where nobody answers
    scribes    started when the run hangs, one for each thing to write; waited for shortly, as a disk may be what hangs

Ranks wait for each other, so one that stands still stops all. A run hangs when on every rank that is still heard of
nothing has happened for the bound of what it is doing; one alone that waits for a slow one is patience. Then

    1. the lowest rank that is heard of calls it, in the store
    2. every rank that hears the call takes a dump of its threads: to RUN/logs, and its gist into the store
    3. the caller compares, names the odd one on stderr and in events.jsonl, and all leave with status HUNG

The store lies in a launcher, and outlives any rank that is stopped. Where it does not answer (its host is gone, or it
is held by a rank that is stopped), each rank ends by itself.

Times are of this process's own clock, and count only while it runs: a job that was suspended as a whole does not wake
up to find itself hung, and hosts whose clocks differ or jump agree.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import sys
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from bigtrain.base.exit_status import HUNG
from bigtrain.base.launcher_protocol import report_end
from bigtrain.config.guard_settings import GuardSettings
from bigtrain.engine.topology import Topology, connect
from bigtrain.health.hang import Report, Verdict, judge
from bigtrain.health.heartbeat import Heartbeat, Position
from bigtrain.health.thread_dump import ThreadDump, take_dump
from bigtrain.rundir.directory import RunDirectory
from bigtrain.rundir.events import HangEvent
from bigtrain.rundir.json_lines import JsonLines

logger = logging.getLogger(__name__)

LONGEST_INTERVAL = 5.0
"""Seconds between two looks, and two words to the others; a tenth of the bound where that is less."""
PACE_SECONDS = 1.0
"""The same at most, for a rank that stands still."""
WRITING_SECONDS = 2.0
"""How long a scribe is waited for."""
PATIENCE_SECONDS = 2.0
"""How long the store may take to answer a question."""
HEARING_SECONDS = 3.0
"""How long the caller waits for the dumps of ranks that are heard of."""


@dataclass(frozen=True)
class Bounds:
    """Seconds without anything new that make a hang."""

    step: float
    slow: float

    @property
    def interval(self) -> float:
        """Between two looks."""
        return min(LONGEST_INTERVAL, min(self.step, self.slow) / 10)

    @property
    def silence(self) -> float:
        """After which a rank is no longer heard of; shorter than any bound, and known when it is over."""
        return 5 * self.interval


@dataclass
class Heard:
    """What another rank has said last, and when that was."""

    word: dict[str, Any]
    at: float


class Courier(threading.Thread):
    """Carries this rank's word to the store, and the others' back."""

    def __init__(self, rank: int, world_size: int, bounds: Bounds, prefix: str) -> None:
        """Be ready to start.

        Args:
            prefix: of the keys in the store, the same on all ranks and another for each start.
        """
        super().__init__(name="watchdog-courier", daemon=True)
        self._rank, self._world_size, self._bounds, self._prefix = rank, world_size, bounds, prefix
        self.word: dict[str, Any] = {}
        """To be carried; whoever changes it puts another in its place."""
        self.curious = False
        """Whether this rank stands still, and wants to hear of the others."""
        self.heard: dict[int, Heard] = {}
        self.call: dict[str, Any] | None = None
        """That the run hangs, as the lowest rank has said."""
        self.answered = time.monotonic()
        """When the store last did."""
        self._outbox: deque[tuple[str, str]] = deque()
        self._wake = threading.Event()
        self._gist: dict[int, dict[str, Any]] = {}
        self._store: Any = None

    def call_out(self, saving: bool) -> None:
        """Tell all ranks that the run hangs."""
        self._send("call", {"saving": saving})

    def tell_gist(self, dump: ThreadDump) -> None:
        """Tell what this rank sees in its own dump."""
        gist = {"where": dump.where, "ranks": dump.waits_for_ranks, "disk": dump.waits_for_disk}
        self._send(f"{self._rank}/gist", gist)

    def _send(self, key: str, value: dict[str, Any]) -> None:
        self._outbox.append((f"{self._prefix}/{key}", json.dumps(value)))
        self.curious = True
        self._wake.set()

    def gists(self) -> dict[int, dict[str, Any]]:
        """What the ranks have seen in their dumps, as far as it has come."""
        return dict(self._gist)

    def run(self) -> None:
        """Until the process ends. A store that fails is asked again; `cut_off` tells when it has not answered."""
        while True:
            with contextlib.suppress(Exception):
                if self._store is None:
                    self._store = connect(timedelta(seconds=PATIENCE_SECONDS))
                self._exchange()
                self.answered = time.monotonic()
            hurried = 0.1 if self._wake.is_set() or self.call else PACE_SECONDS
            self._wake.wait(min(hurried, self._bounds.interval) if self.curious else self._bounds.interval)
            if self._wake.is_set():
                time.sleep(0.1)

    def _exchange(self) -> None:
        while self._outbox:
            self._store.set(*self._outbox[0])
            self._outbox.popleft()
        self._store.set(f"{self._prefix}/{self._rank}", json.dumps(self.word))
        if not self.curious:
            return
        call = f"{self._prefix}/call"
        if self.call is None and self._store.check([call]):
            self.call = json.loads(self._store.get(call))
        for rank in self._interesting():
            key = f"{self._prefix}/{rank}"
            if self._store.check([key]):
                word = json.loads(self._store.get(key))
                before = self.heard.get(rank)
                if before is None or before.word != word:
                    self.heard[rank] = Heard(word, time.monotonic())
            if self.call and rank not in self._gist and self._store.check([f"{key}/gist"]):
                self._gist[rank] = json.loads(self._store.get(f"{key}/gist"))

    def _interesting(self) -> Iterator[int]:
        """The ranks up to the lowest that is heard of, and if that is this one, all of them."""
        for rank in range(self._world_size):
            if rank == self._rank:
                break
            yield rank
            if not self.is_silent(rank):
                return
        yield from (rank for rank in range(self._world_size) if rank != self._rank)

    def is_silent(self, rank: int) -> bool:
        """Whether a rank is not heard of any more, as far as this one has listened."""
        heard = self.heard.get(rank)
        return heard is None or time.monotonic() - heard.at > self._bounds.silence

    @property
    def cut_off(self) -> bool:
        """Whether the store does not answer."""
        return time.monotonic() - self.answered > self._bounds.silence + 2 * PATIENCE_SECONDS


class Watchdog:
    """Of one rank."""

    def __init__(
        self,
        heartbeat: Heartbeat,
        bounds: Bounds,
        topology: Topology,
        directory: RunDirectory,
    ) -> None:
        self._heartbeat, self._bounds, self._topology, self._directory = heartbeat, bounds, topology, directory
        self.saving_since: Callable[[], float | None] = lambda: None
        """When the save that is under way behind the training began, by time.monotonic."""
        self.alert: Callable[[str, str], None] = lambda _title, _text: None
        """Called with the verdict on the rank that finds it, in a thread that is not waited for long."""
        self._rank, self._host = topology.rank, socket.gethostname()
        self._courier: Courier | None = None
        self._stood = 0.0
        """Seconds without anything new."""
        self._last = heartbeat.position
        self._ended = threading.Event()

    @classmethod
    def start(
        cls, heartbeat: Heartbeat, settings: GuardSettings, topology: Topology, directory: RunDirectory
    ) -> Watchdog:
        """Begin to watch over a heartbeat, if the settings ask for it. Every rank calls it."""
        bounds = Bounds(settings.hang_seconds or math.inf, settings.hang_slow_seconds)
        watchdog = cls(heartbeat, bounds, topology, directory)
        if settings.hang_seconds is not None:
            watchdog._begin()
        return watchdog

    def _begin(self) -> None:
        if self._topology.world_size > 1:
            prefix = f"bigtrain/watch/{self._topology.broadcast(uuid.uuid4().hex)}"
            self._courier = Courier(self._rank, self._topology.world_size, self._bounds, prefix)
            self._speak()
            self._courier.start()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer: the run is over."""
        self._ended.set()

    @property
    def _bound(self) -> float:
        return self._bounds.slow if self._heartbeat.slow else self._bounds.step

    @property
    def _save_is_late(self) -> bool:
        since = self.saving_since()
        return since is not None and time.monotonic() - since > self._bounds.slow

    @property
    def _overdue(self) -> bool:
        return self._stood >= self._bound

    def _watch(self) -> None:
        before, number = time.monotonic(), 0
        while not self._ended.wait(min(PACE_SECONDS, self._bounds.interval) if self._stood else self._bounds.interval):
            now, position = time.monotonic(), self._heartbeat.position
            # One that was suspended itself has not waited all that time, and gives the others time to wake up too.
            self._stood = 0.0 if position != self._last else self._stood + min(now - before, 3 * self._bounds.interval)
            before, self._last, number = now, position, number + 1
            self._speak(number)
            if self._courier is not None and self._courier.call is not None:
                self._end(called_by_us=False, saving=bool(self._courier.call["saving"]))
            if (saving := self._save_is_late) or self._overdue:
                self._consider(saving and not self._overdue)

    def _speak(self, number: int = 0) -> None:
        if self._courier is None:
            return
        self._courier.word = {
            "number": number,
            "position": self._heartbeat.position,
            "overdue": self._overdue,
            "late": self._save_is_late,
            "host": self._host,
            "pid": os.getpid(),
        }
        self._courier.curious = self._stood >= self._bound / 2 or self.saving_since() is not None

    def _consider(self, saving: bool) -> None:
        """This rank stands still. Does the run hang, and is it for this rank to say so?"""
        courier = self._courier
        if courier is None:
            self._end(called_by_us=True, saving=saving)
            return
        if courier.cut_off:
            self._end(called_by_us=True, saving=saving, store_answers=False)
        others = [rank for rank in range(self._topology.world_size) if rank != self._rank]
        heard = [rank for rank in others if not courier.is_silent(rank)]
        if any(rank < self._rank for rank in heard):
            return  # that one says it
        if not saving and not all(courier.heard[rank].word["overdue"] for rank in heard):
            return  # somebody is getting on
        courier.call_out(saving)
        self._end(called_by_us=True, saving=saving)

    def _end(self, *, called_by_us: bool, saving: bool, store_answers: bool = True) -> None:
        """Take the dump, report_end it, and leave."""
        try:
            dump = take_dump(behind=saving)
            self._tell(dump)
            if self._courier is not None and store_answers:
                self._courier.tell_gist(dump)
            if not called_by_us:
                time.sleep(HEARING_SECONDS + WRITING_SECONDS)  # the caller is to leave first: it has more to say
            elif store_answers:
                self._announce(judge(self._reports(dump), saving))
            else:
                self._announce(self._cut_off(dump, saving))
        except Exception:
            error = traceback.format_exc()
            _shortly(lambda: print(error, file=sys.stderr, flush=True))
        finally:
            _shortly(lambda: report_end("hung"))
            os._exit(HUNG)

    def _reports(self, own: ThreadDump) -> list[Report]:
        """Of all ranks, as soon as those that are heard of have said what they see, or after a while."""
        reports = [self._own_report(own)]
        courier = self._courier
        if courier is None:
            return reports
        others = [rank for rank in range(self._topology.world_size) if rank != self._rank]
        silent = {rank for rank in others if courier.is_silent(rank)}
        end = time.monotonic() + HEARING_SECONDS
        while time.monotonic() < end and not set(others) - silent <= courier.gists().keys():
            time.sleep(0.05)
        gists = courier.gists()
        for rank in others:
            word = courier.heard[rank].word if rank in courier.heard else {}
            gist = gists.get(rank, {})
            reports.append(
                Report(
                    rank,
                    word.get("host", "an unknown host"),
                    word.get("pid", 0),
                    Position(*word.get("position", (0, 0, 0, 0))),
                    silent=rank in silent,
                    where=gist.get("where", ""),
                    waits_for_ranks=gist.get("ranks", False),
                    waits_for_disk=gist.get("disk", False),
                )
            )
        return sorted(reports, key=lambda report: report.rank)

    def _own_report(self, own: ThreadDump) -> Report:
        return Report(
            self._rank,
            self._host,
            os.getpid(),
            self._heartbeat.position,
            where=own.where,
            waits_for_ranks=own.waits_for_ranks,
            waits_for_disk=own.waits_for_disk,
        )

    def _cut_off(self, own: ThreadDump, saving: bool) -> Verdict:
        here = judge([self._own_report(own)], saving)
        return Verdict(
            [], f"the store that the ranks meet in does not answer: its host is gone, or stopped; {here.why}"
        )

    def _tell(self, dump: ThreadDump) -> None:
        """Write the stacks of all threads to RUN/logs."""
        moment = time.strftime("%Y%m%dT%H%M%S")
        path = self._directory.logs / f"hang-{moment}-rank-{self._rank:05d}.txt"
        head = f"rank {self._rank} on {self._host}, process {os.getpid()}, {self._heartbeat.position}\n\n"
        _shortly(lambda: _write(path, head + dump.text))

    def _announce(self, verdict: Verdict) -> None:
        seconds = round(max(self._stood, 0.0))
        message = f"no step in {seconds}s: {verdict}"
        event = HangEvent(
            step=self._heartbeat.position.step,
            seconds=seconds,
            odd=[{"rank": report.rank, "host": report.host, "pid": report.pid} for report in verdict.odd],
            verdict=verdict.why,
            exit_status=HUNG,
        )
        where = f"stacks of all threads of the ranks that could write them: {self._directory.logs}/hang-*.txt"
        scribes = [
            _start(lambda: print(f"error: {message}\n  {where}", file=sys.stderr, flush=True)),
            _start(lambda: JsonLines(self._directory.events).append(event.as_record())),
            _start(lambda: self.alert("the run hangs", message)),
            _start(lambda: logger.error(message)),
        ]
        end = time.monotonic() + WRITING_SECONDS
        for scribe in scribes:
            scribe.join(max(0.0, end - time.monotonic()))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _start(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, name="watchdog-scribe", daemon=True)
    thread.start()
    return thread


def _shortly(work: Callable[[], object]) -> None:
    _start(work).join(WRITING_SECONDS)

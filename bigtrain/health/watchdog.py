"""Detects that a run hangs, names the rank that holds it up, and ends it so that a launcher can start it again.

Every rank has these threads beside its training. None of them waits for the training, nor for each other:

    watchdog             measures for how long the loop's heartbeat has not changed, and decides; it never blocks
    watchdog-heartbeat   exchanges messages with the other ranks through the store; it may block where the store does
    watchdog-writer      one for each file or line to write when the run hangs; a disk may be what hangs, so each is
                         waited for `WRITING_SECONDS` at most

Ranks wait for each other, so one rank that stalls stops all. A rank is overdue when its heartbeat has not changed for
the bound of its phase. A run hangs when every rank that still answers is overdue; one alone may wait for a slow one.
The leader, the lowest rank that answers, decides:

    leader                      store                          other ranks
      |-- message of rank 0 ---->|<---- message of each rank ----|     position, overdue, host, process
      |<-- all are overdue ------|                               |
      |-- hang ----------------->|------- hang ----------------->|     1. the leader declares the hang
    dump to RUN/logs             |                  dump to RUN/logs   2. every rank dumps its threads
      |<-- summaries ------------|<---- summary of each dump ----|        and sends a summary of the dump
    diagnosis: stderr, events    |                               |     3. the leader names the suspects
    exit status 70               |                 exit status 70

The store lives in a launcher, and outlives a rank that is stopped. Where it does not answer, its host is down or a
rank that holds it is stopped; each rank then ends by itself.

Times are of this process's own clock, and count only while it runs. A job that was suspended as a whole does not find
itself hung when it wakes up. Hosts whose clocks differ or jump agree all the same.
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

from bigtrain.base import HUNG, machine_name, report_end, show_controls
from bigtrain.config import GuardSettings
from bigtrain.engine import Topology, connect
from bigtrain.health.hang import HangDiagnosis, RankReport, diagnose
from bigtrain.health.heartbeat import Heartbeat, Position
from bigtrain.health.thread_dump import ThreadDump, take_dump
from bigtrain.rundir import (
    Event,
    HangEvent,
    JsonLines,
    RunDirectory,
    newest_events,
    record_failing_hosts,
    seconds_of,
)

logger = logging.getLogger(__name__)

LONGEST_INTERVAL = 5.0
"""Seconds between two looks at the heartbeat, and between two messages; a tenth of the bound where that is less."""
STALLED_INTERVAL = 1.0
"""Seconds between two looks of a rank whose heartbeat has not changed, at most."""
WRITING_SECONDS = 2.0
"""Seconds for which a writer thread is waited for."""
STORE_SECONDS = 2.0
"""Seconds that the store may take to answer a request."""
KNOWN_SECONDS = 60.0
"""A hang that was recorded so long before the one that this rank has found may be the same."""
SUMMARY_SECONDS = 3.0
"""Seconds for which the leader waits for the summaries of the ranks that answer."""


@dataclass(frozen=True)
class Bounds:
    """Seconds without progress that make a hang."""

    step: float
    """In a phase of a step."""
    slow: float
    """In a phase that may take longer."""

    @property
    def interval(self) -> float:
        """Seconds between two looks at the heartbeat."""
        return min(LONGEST_INTERVAL, min(self.step, self.slow) / 10)

    @property
    def silence(self) -> float:
        """Seconds without a new message until a rank is silent; shorter than any bound, so it is known by then."""
        return 5 * self.interval


@dataclass
class ReceivedMessage:
    """The last message of another rank."""

    content: dict[str, Any]
    at: float
    """When it was new, by time.monotonic."""


class HeartbeatThread(threading.Thread):
    """Sends this rank's messages to the store, and receives the other ranks'."""

    def __init__(self, rank: int, world_size: int, bounds: Bounds, prefix: str) -> None:
        """Prepare the thread; `start` runs it.

        Args:
            rank: this rank.
            world_size: the number of ranks.
            bounds: they set how often messages are exchanged.
            prefix: of the keys in the store. It is the same on all ranks, and another one for each start.
        """
        super().__init__(name="watchdog-heartbeat", daemon=True)
        self._rank, self._world_size, self._bounds, self._prefix = rank, world_size, bounds, prefix
        self.message: dict[str, Any] = {}
        """This rank's message. It is replaced as a whole, never changed, because two threads use it."""
        self.listening = False
        """Whether to receive the messages of other ranks: this rank makes no progress, or saves."""
        self.received: dict[int, ReceivedMessage] = {}
        self.declared: dict[str, Any] | None = None
        """The leader's declaration that the run hangs."""
        self.answered = time.monotonic()
        """When the store last answered."""
        self._outbox: deque[tuple[str, str]] = deque()
        self._wake = threading.Event()
        self._summaries: dict[int, dict[str, Any]] = {}
        self._store: Any = None

    def declare_hang(self, saving: bool) -> None:
        """Send to all ranks that the run hangs."""
        self._send("hang", {"saving": saving})

    def send_summary(self, dump: ThreadDump) -> None:
        """Send the summary of this rank's thread dump."""
        summary = {"where": dump.where, "ranks": dump.waits_for_ranks, "disk": dump.waits_for_disk}
        self._send(f"{self._rank}/summary", summary)

    def _send(self, key: str, value: dict[str, Any]) -> None:
        self._outbox.append((f"{self._prefix}/{key}", json.dumps(value)))
        self.listening = True
        self._wake.set()

    def summaries(self) -> dict[int, dict[str, Any]]:
        """The summaries of thread dumps that have been received, by rank."""
        return dict(self._summaries)

    def run(self) -> None:
        """Exchange messages until the process ends. A store that fails is asked again; see `cut_off`."""
        while True:
            with contextlib.suppress(Exception):
                if self._store is None:
                    self._store = connect(timedelta(seconds=STORE_SECONDS))
                self._exchange()
                self.answered = time.monotonic()
            pause = 0.1 if self._wake.is_set() or self.declared else STALLED_INTERVAL
            self._wake.wait(min(pause, self._bounds.interval) if self.listening else self._bounds.interval)
            if self._wake.is_set():
                time.sleep(0.1)

    def _exchange(self) -> None:
        while self._outbox:
            self._store.set(*self._outbox[0])
            self._outbox.popleft()
        self._store.set(f"{self._prefix}/{self._rank}", json.dumps(self.message))
        if not self.listening:
            return
        hang = f"{self._prefix}/hang"
        if self.declared is None and self._store.check([hang]):
            self.declared = json.loads(self._store.get(hang))
        for rank in self._ranks_to_read():
            key = f"{self._prefix}/{rank}"
            if self._store.check([key]):
                content = json.loads(self._store.get(key))
                last = self.received.get(rank)
                if last is None or last.content != content:
                    self.received[rank] = ReceivedMessage(content, time.monotonic())
            if self.declared and rank not in self._summaries and self._store.check([f"{key}/summary"]):
                self._summaries[rank] = json.loads(self._store.get(f"{key}/summary"))

    def _ranks_to_read(self) -> Iterator[int]:
        """The ranks up to the leader; all others where this rank is the leader."""
        for rank in range(self._world_size):
            if rank == self._rank:
                break
            yield rank
            if not self.is_silent(rank):
                return
        yield from (rank for rank in range(self._world_size) if rank != self._rank)

    def is_silent(self, rank: int) -> bool:
        """Whether no new message of a rank has been received for `Bounds.silence`."""
        received = self.received.get(rank)
        return received is None or time.monotonic() - received.at > self._bounds.silence

    @property
    def cut_off(self) -> bool:
        """Whether the store has stopped answering."""
        return time.monotonic() - self.answered > self._bounds.silence + 2 * STORE_SECONDS


class Watchdog:
    """Watches the heartbeat of one rank, and ends the process when the run hangs."""

    def __init__(
        self,
        heartbeat: Heartbeat,
        bounds: Bounds,
        topology: Topology,
        directory: RunDirectory,
    ) -> None:
        self._heartbeat, self._bounds, self._topology, self._directory = heartbeat, bounds, topology, directory
        self.saving_since: Callable[[], float | None] = lambda: None
        """Returns when the background save that is under way started, by time.monotonic."""
        self.alert: Callable[[str, str], None] = lambda _title, _text: None
        """Called on the leader with a title and the diagnosis, in a writer thread."""
        self._rank, self._host = topology.rank, socket.gethostname()
        self._thread: HeartbeatThread | None = None
        self._stalled = 0.0
        """Seconds without progress."""
        self._last = heartbeat.position
        self._ended = threading.Event()

    @classmethod
    def start(
        cls, heartbeat: Heartbeat, settings: GuardSettings, topology: Topology, directory: RunDirectory
    ) -> Watchdog:
        """Start to watch a heartbeat, if the settings ask for it. Every rank calls it."""
        bounds = Bounds(settings.hang_seconds or math.inf, settings.hang_slow_seconds)
        watchdog = cls(heartbeat, bounds, topology, directory)
        if settings.hang_seconds is not None:
            watchdog._start_threads()
        return watchdog

    def _start_threads(self) -> None:
        if self._topology.world_size > 1:
            prefix = f"bigtrain/watch/{self._topology.broadcast(uuid.uuid4().hex)}"
            self._thread = HeartbeatThread(self._rank, self._topology.world_size, self._bounds, prefix)
            self._update_message()
            self._thread.start()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching: the run is over."""
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
        return self._stalled >= self._bound

    def _watch(self) -> None:
        before, number, interval = time.monotonic(), 0, self._bounds.interval
        while not self._ended.wait(min(STALLED_INTERVAL, interval) if self._stalled else interval):
            now, position = time.monotonic(), self._heartbeat.position
            # A process that was suspended has not waited all that time, and gives the others time to wake up too.
            self._stalled = 0.0 if position != self._last else self._stalled + min(now - before, 3 * interval)
            before, self._last, number = now, position, number + 1
            self._update_message(number)
            if self._thread is not None and self._thread.declared is not None:
                self._end(leads=False, saving=bool(self._thread.declared["saving"]))
            if (saving := self._save_is_late) or self._overdue:
                self._end_if_hung(saving and not self._overdue)

    def _update_message(self, number: int = 0) -> None:
        if self._thread is None:
            return
        self._thread.message = {
            "number": number,
            "position": self._heartbeat.position,
            "overdue": self._overdue,
            "late": self._save_is_late,
            "host": self._host,
            "pid": os.getpid(),
            "machine": machine_name(),
        }
        self._thread.listening = self._stalled >= self._bound / 2 or self.saving_since() is not None

    def _end_if_hung(self, saving: bool) -> None:
        """This rank is overdue: end if the run hangs and this rank is the leader, or the store does not answer."""
        thread = self._thread
        if thread is None:
            self._end(leads=True, saving=saving)
            return
        if thread.cut_off:
            self._end(leads=True, saving=saving, store_answers=False)
        others = [rank for rank in range(self._topology.world_size) if rank != self._rank]
        answering = [rank for rank in others if not thread.is_silent(rank)]
        if any(rank < self._rank for rank in answering):
            return  # that rank leads
        if not saving and not all(thread.received[rank].content["overdue"] for rank in answering):
            return  # a rank makes progress
        thread.declare_hang(saving)
        self._end(leads=True, saving=saving)

    def _end(self, *, leads: bool, saving: bool, store_answers: bool = True) -> None:
        """Dump the threads; on the leader, diagnose and announce; then end the process."""
        try:
            dump = take_dump(saving)
            self._write_dump(dump)
            if self._thread is not None and store_answers:
                self._thread.send_summary(dump)
            if not leads:
                time.sleep(SUMMARY_SECONDS + WRITING_SECONDS)  # the leader has more to write, and is to end first
            elif store_answers:
                self._announce(diagnose(self._reports(dump), saving))
            else:
                self._announce(self._diagnosis_without_store(dump, saving), store_answers=False)
        except Exception:
            error = traceback.format_exc()
            _write_in_thread(lambda: print(show_controls(str(error)), file=sys.stderr, flush=True))
        finally:
            _write_in_thread(lambda: report_end("hung"))
            os._exit(HUNG)

    def _reports(self, own: ThreadDump) -> list[RankReport]:
        """The reports of all ranks, once those that answer have sent a summary or `SUMMARY_SECONDS` have passed."""
        reports = [self._own_report(own)]
        thread = self._thread
        if thread is None:
            return reports
        others = [rank for rank in range(self._topology.world_size) if rank != self._rank]
        silent = {rank for rank in others if thread.is_silent(rank)}
        end = time.monotonic() + SUMMARY_SECONDS
        while time.monotonic() < end and not set(others) - silent <= thread.summaries().keys():
            time.sleep(0.05)
        summaries = thread.summaries()
        for rank in others:
            message = thread.received[rank].content if rank in thread.received else {}
            summary = summaries.get(rank, {})
            reports.append(
                RankReport(
                    rank,
                    message.get("host", "an unknown host"),
                    message.get("pid", 0),
                    Position(*message.get("position", (0, 0, 0, 0))),
                    silent=rank in silent,
                    where=summary.get("where", ""),
                    waits_for_ranks=summary.get("ranks", False),
                    waits_for_disk=summary.get("disk", False),
                    machine=message.get("machine", ""),
                )
            )
        return sorted(reports, key=lambda report: report.rank)

    def _own_report(self, own: ThreadDump) -> RankReport:
        return RankReport(
            self._rank,
            self._host,
            os.getpid(),
            self._heartbeat.position,
            where=own.where,
            waits_for_ranks=own.waits_for_ranks,
            waits_for_disk=own.waits_for_disk,
            machine=machine_name(),
        )

    def _diagnosis_without_store(self, own: ThreadDump, saving: bool) -> HangDiagnosis:
        here = diagnose([self._own_report(own)], saving)
        store = "the ranks' store does not answer: its process is stopped, or its host is down"
        return HangDiagnosis([], f"{store}; {here.reason}")

    def _write_dump(self, dump: ThreadDump) -> None:
        """Write the stacks of all threads to RUN/logs."""
        moment = time.strftime("%Y%m%dT%H%M%S")
        path = self._directory.logs_of(self._rank) / f"hang-{moment}-rank-{self._rank:05d}.txt"
        head = f"rank {self._rank} on {self._host}, process {os.getpid()}, {self._heartbeat.position}\n\n"
        _write_in_thread(lambda: _write(path, head + dump.text))

    def _announce(self, diagnosis: HangDiagnosis, *, store_answers: bool = True) -> None:
        seconds = round(max(self._stalled, 0.0))
        message = f"no step in {seconds}s: {diagnosis}"
        event = HangEvent(
            step=self._heartbeat.position.step,
            seconds=seconds,
            odd=[{"rank": report.rank, "host": report.host, "pid": report.pid} for report in diagnosis.suspects],
            verdict=diagnosis.reason,
            exit_status=HUNG,
        )
        # Of a rank that still answers, the program may be what stalls. Where half of the ranks or more do not answer,
        # this side may be the one that is cut off.
        silent = [report for report in diagnosis.suspects if report.silent]
        failing = (
            [report.machine for report in silent if report.machine]
            if 2 * len(silent) < self._topology.world_size
            else []
        )
        where = f"stacks of all threads, of each rank that could write them: {self._directory.logs}/hang-*.txt"
        if self._directory.logs_of(self._topology.world_size - 1) != self._directory.logs:
            where += " and ranks-*/hang-*.txt there"
        writers = [
            _start_writer(lambda: print(show_controls(f"error: {message}\n  {where}"), file=sys.stderr, flush=True)),
            _start_writer(lambda: record_hang(self._directory.events, event, store_answers)),
            _start_writer(lambda: record_failing_hosts(self._directory.root, failing, "hang", diagnosis.reason)),
            _start_writer(lambda: self.alert("the run hangs", message)),
            _start_writer(lambda: logger.error(message)),
        ]
        end = time.monotonic() + WRITING_SECONDS
        for writer in writers:
            writer.join(max(0.0, end - time.monotonic()))


def record_hang(events: Path, event: HangEvent, store_answers: bool) -> None:
    """Append a hang to events.jsonl, unless it is known there and this rank knows less.

    Where a network is cut, the ranks that the store still answers find out first, and name those that are silent. Each
    rank on the other side finds only that the store is silent. Two events would contradict each other.

    Args:
        events: the file.
        event: of this rank.
        store_answers: whether the ranks' store answers this rank.
    """
    if not store_answers:
        recent = time.time() - event.seconds - KNOWN_SECONDS
        last = [each for each in newest_events(events) if each["event"] == Event.HANG]
        if last and seconds_of(last[-1], "time") > recent:
            return
    JsonLines(events).append(event.as_record())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _start_writer(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, name="watchdog-writer", daemon=True)
    thread.start()
    return thread


def _write_in_thread(work: Callable[[], object]) -> None:
    """Run this in a writer thread, and wait for it `WRITING_SECONDS` at most."""
    _start_writer(work).join(WRITING_SECONDS)

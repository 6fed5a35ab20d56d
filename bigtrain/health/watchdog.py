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
import random
import socket
import sys
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable
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
from bigtrain.rundir import HangEvent, JsonLines, RunDirectory, record_failing_hosts

logger = logging.getLogger(__name__)

LONGEST_INTERVAL = 5.0
"""Seconds between two looks at the heartbeat, and between two messages; a tenth of the bound where that is less."""
STALLED_INTERVAL = 1.0
"""Seconds between two looks of a rank whose heartbeat has not changed, at most."""
COLLECTING_INTERVAL = 0.1
"""Seconds between two looks of the leader for summaries."""
LISTENERS_A_SECOND = 3000
"""Ranks that ask the store for the leader's message in a second. A question takes 5 to 8 us of CPU of the store's host
(benchmarks of the audit of 2026-11), so these take a tenth of a core."""
WRITING_SECONDS = 2.0
"""Seconds for which a writer thread is waited for."""
STORE_SECONDS = 2.0
"""Seconds that the store may take to answer a request."""
SUMMARY_SECONDS = 3.0
"""Seconds for which the leader waits for the summaries of a few ranks that answer; see `Bounds.summaries`."""
SUMMARIES_A_SECOND = 2000
"""Summaries that come in a second, at least. The store takes far more, but all ranks of a host dump their threads."""
KEYS_A_QUESTION = 512
"""Keys that are read from the store at once, and ranks whose summaries are one value."""
WIDER = 16
"""By how much more of the lowest ranks are looked at when none of these has answered."""


@dataclass(frozen=True)
class Bounds:
    """Seconds without progress that make a hang."""

    step: float
    """In a phase of a step."""
    slow: float
    """In a phase that may take longer."""
    ranks: int = 1
    """The number of ranks. More of them ask the store less often, so that it has as much to do."""

    @property
    def interval(self) -> float:
        """Seconds between two looks at the heartbeat."""
        return min(LONGEST_INTERVAL, min(self.step, self.slow) / 10)

    @property
    def listening(self) -> float:
        """Seconds between two looks of a rank that listens for the leader; never more than `interval`."""
        return min(self.interval, max(STALLED_INTERVAL, self.ranks / LISTENERS_A_SECOND))

    @property
    def silence(self) -> float:
        """Seconds without a new message until a rank is silent; shorter than any bound, so it is known by then."""
        return 5 * self.interval

    @property
    def summaries(self) -> float:
        """Seconds for which the leader waits for summaries: until all ranks have heard of the hang and answered."""
        return SUMMARY_SECONDS + max(0.0, self.listening - STALLED_INTERVAL) + self.ranks / SUMMARIES_A_SECOND


@dataclass
class ReceivedMessage:
    """The last message of another rank."""

    text: str
    content: dict[str, Any]
    at: float
    """When it was new, by time.monotonic."""


class HeartbeatThread(threading.Thread):
    """Sends this rank's messages to the store, and receives the other ranks'.

    All ranks send. Only the leader receives from all: it reads the keys by hundreds. Another rank that listens asks for
    the leader's declaration and message only. Where the lowest ranks do not answer, it asks for more of them.
    """

    def __init__(self, rank: int, bounds: Bounds, prefix: str) -> None:
        """Prepare the thread; `start` runs it.

        Args:
            rank: this rank.
            bounds: they set how often messages are exchanged, and by how many ranks.
            prefix: of the keys in the store. It is the same on all ranks, and another one for each start.
        """
        super().__init__(name="watchdog-heartbeat", daemon=True)
        self._rank, self._bounds, self._prefix = rank, bounds, prefix
        self.message: dict[str, Any] = {}
        """This rank's message. It is replaced as a whole, never changed, because two threads use it."""
        self.listening = False
        """Whether to receive messages: this rank makes no progress, or its save is late."""
        self.received: dict[int, ReceivedMessage] = {}
        self.declared: dict[str, Any] | None = None
        """The leader's declaration that the run hangs."""
        self.answered = time.monotonic()
        """When the store last answered."""
        self._leads = rank == 0
        self._watched_since: float | None = None
        """When the leader had read the messages of all ranks for the first time."""
        self._lowest = 1
        """How many of the lowest ranks are looked at for the leader."""
        self._collects = False
        self._jitter = random.Random()  # not the generator whose state is part of a checkpoint
        self._outbox: deque[Callable[[], object]] = deque()
        self._wake = threading.Event()
        self._summaries: dict[int, dict[str, Any]] = {}
        self._store: Any = None

    def declare_hang(self, saving: bool) -> None:
        """Send to all ranks that the run hangs, and receive their summaries from now on."""
        value = json.dumps({"saving": saving})
        self._collects = True
        self._send(lambda: self._store.set(f"{self._prefix}/hang", value))

    def send_summary(self, dump: ThreadDump) -> None:
        """Send the summary of this rank's thread dump."""
        summary = [self._rank, {"where": dump.where, "ranks": dump.waits_for_ranks, "disk": dump.waits_for_disk}]
        line = json.dumps(summary) + "\n"  # many ranks add to one value, which is read at once
        self._send(lambda: self._store.append(self._summary_key(self._rank), line))

    def _summary_key(self, rank: int) -> str:
        return f"{self._prefix}/summaries/{rank // KEYS_A_QUESTION}"

    def _send(self, request: Callable[[], object]) -> None:
        self._outbox.append(request)
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
                self.exchange()
                self.answered = time.monotonic()
            self._wake.wait(self._pause())
            self._wake.clear()

    def _pause(self) -> float:
        if self._outbox or self._collects:
            return COLLECTING_INTERVAL
        if not self.listening:
            return self._bounds.interval
        if self._leads:
            return min(STALLED_INTERVAL, self._bounds.interval)
        return self._bounds.listening * self._jitter.uniform(0.5, 1)

    def exchange(self) -> None:
        """Send what there is to send, and receive what this rank needs to know now."""
        while self._outbox:
            self._outbox[0]()
            self._outbox.popleft()
        self._store.set(self._message_key(self._rank), json.dumps(self.message))
        if self._collects:
            self._receive_summaries()
        elif self.listening:
            self._receive_declaration()
            self._receive_messages()
        else:  # what was received will be old when this rank listens again
            self.received, self._leads, self._lowest, self._watched_since = {}, self._rank == 0, 1, None

    def _message_key(self, rank: int) -> str:
        return f"{self._prefix}/{rank}"

    def _receive_declaration(self) -> None:
        hang = f"{self._prefix}/hang"
        if self.declared is None and self._store.check([hang]):
            self.declared = json.loads(self._store.get(hang))

    def _receive_messages(self) -> None:
        lower = range(min(self._lowest, self._rank))
        ranks = [rank for rank in range(self._bounds.ranks) if rank != self._rank] if self._leads else list(lower)
        texts = self._read([self._message_key(rank) for rank in ranks])
        for rank in ranks:
            text, last = texts.get(self._message_key(rank)), self.received.get(rank)
            if text is not None and (last is None or last.text != text):
                self.received[rank] = ReceivedMessage(text, json.loads(text), time.monotonic())
        if not self._leads:
            self._watched_since = None
        elif self._watched_since is None:
            self._watched_since = time.monotonic()
        nobody_answers = all(self.is_silent(rank) for rank in lower)
        if nobody_answers and len(lower) < self._rank:
            self._lowest *= WIDER
        self._leads = nobody_answers and len(lower) == self._rank

    def _receive_summaries(self) -> None:
        missing = (rank for rank in range(self._bounds.ranks) if rank not in self._summaries)
        for text in self._read(list({self._summary_key(rank): None for rank in missing})).values():
            self._summaries |= dict(map(json.loads, text.splitlines()))

    def _read(self, keys: list[str]) -> dict[str, str]:
        """The values of those keys that exist."""
        found: dict[str, str] = {}
        for first in range(0, len(keys), KEYS_A_QUESTION):
            there = self._existing(keys[first : first + KEYS_A_QUESTION])
            values = self._store.multi_get(there) if there else []
            found |= {key: value.decode() for key, value in zip(there, values, strict=True)}
        return found

    def _existing(self, keys: list[str]) -> list[str]:
        """Those of the keys that exist: `multi_get` waits for one that does not. Nearly always all do."""
        if self._store.check(keys):
            return keys
        half = len(keys) // 2
        return self._existing(keys[:half]) + self._existing(keys[half:]) if half else []

    @property
    def leads(self) -> bool:
        """Whether no lower rank answers, and this one knows which are silent: it has watched all for that long."""
        since = self._watched_since
        return self._leads and since is not None and time.monotonic() - since > self._bounds.silence

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
        self._start_id = uuid.uuid4().hex
        """The same on all ranks, and another one for each start."""
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
        bounds = Bounds(settings.hang_seconds or math.inf, settings.hang_slow_seconds, topology.world_size)
        watchdog = cls(heartbeat, bounds, topology, directory)
        if settings.hang_seconds is not None:
            watchdog._start_threads()
        return watchdog

    def _start_threads(self) -> None:
        if self._topology.world_size > 1:
            self._start_id = self._topology.broadcast(self._start_id)
            self._thread = HeartbeatThread(self._rank, self._bounds, f"bigtrain/watch/{self._start_id}")
            self._update_message()
            self._thread.start()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching: the run is over."""
        self._ended.set()

    @property
    def _bound(self) -> float:
        return self._bounds.slow if self._heartbeat.slow else self._bounds.step

    def _save_takes(self, seconds: float) -> bool:
        """Whether a background save is under way that started more than these seconds ago."""
        since = self.saving_since()
        return since is not None and time.monotonic() - since > seconds

    @property
    def _overdue(self) -> bool:
        return self._stalled >= self._bound

    @property
    def _attentive(self) -> bool:
        return bool(self._stalled) or (self._thread is not None and self._thread.listening)

    def _watch(self) -> None:
        before, number, interval = time.monotonic(), 0, self._bounds.interval
        while not self._ended.wait(min(STALLED_INTERVAL, interval) if self._attentive else interval):
            now, position = time.monotonic(), self._heartbeat.position
            # A process that was suspended has not waited all that time, and gives the others time to wake up too.
            self._stalled = 0.0 if position != self._last else self._stalled + min(now - before, 3 * interval)
            before, self._last, number = now, position, number + 1
            self._update_message(number)
            if self._thread is not None and self._thread.declared is not None:
                self._end(leads=False, saving=bool(self._thread.declared["saving"]))
            if (saving := self._save_takes(self._bounds.slow)) or self._overdue:
                self._end_if_hung(saving and not self._overdue)

    def _update_message(self, number: int = 0) -> None:
        if self._thread is None:
            return
        self._thread.message = {
            "number": number,
            "position": self._heartbeat.position,
            "overdue": self._overdue,
            "late": self._save_takes(self._bounds.slow),
            "host": self._host,
            "pid": os.getpid(),
            "machine": machine_name(),
        }
        # Early enough to find out before the bound which ranks are silent, the lowest ones too.
        self._thread.listening = self._stalled >= self._bound / 3 or self._save_takes(self._bounds.slow / 2)

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(self._topology.world_size) if rank != self._rank]

    def _end_if_hung(self, saving: bool) -> None:
        """This rank is overdue: end if the run hangs and this rank is the leader, or the store does not answer."""
        thread = self._thread
        if thread is None:
            self._end(leads=True, saving=saving)
            return
        if thread.cut_off:
            self._end(leads=True, saving=saving, store_answers=False)
        if not thread.leads:
            return  # another rank does
        answering = [rank for rank in self._others if not thread.is_silent(rank)]
        if not saving and not all(thread.received[rank].content["overdue"] for rank in answering):
            return  # a rank makes progress
        thread.declare_hang(saving)
        self._end(leads=True, saving=saving)

    def _end(self, *, leads: bool, saving: bool, store_answers: bool = True) -> None:
        """Dump the threads; on the leader, diagnose and announce; then end the process."""
        try:
            dump = take_dump(saving)
            if self._thread is not None and store_answers:
                self._thread.send_summary(dump)
            self._write_dump(dump)
            if not leads:
                # The leader has more to write, and is to end first.
                time.sleep(self._bounds.summaries + WRITING_SECONDS)
            elif store_answers:
                self._announce(diagnose(self._reports(dump), saving))
            else:
                time.sleep(self._bounds.summaries + WRITING_SECONDS)  # ranks with the store know more, and write first
                self._announce(self._diagnosis_without_store(dump, saving))
        except Exception:
            error = traceback.format_exc()
            _write_in_thread(lambda: print(show_controls(str(error)), file=sys.stderr, flush=True))
        finally:
            _write_in_thread(lambda: report_end("hung"))
            os._exit(HUNG)

    def _reports(self, own: ThreadDump) -> list[RankReport]:
        """The reports of all ranks, once those that answer have sent a summary or `Bounds.summaries` have passed."""
        reports = [self._own_report(own)]
        thread = self._thread
        if thread is None:
            return reports
        silent = {rank for rank in self._others if thread.is_silent(rank)}
        answering = set(self._others) - silent
        end = time.monotonic() + self._bounds.summaries
        while time.monotonic() < end and not answering <= thread.summaries().keys():
            time.sleep(COLLECTING_INTERVAL / 2)
        summaries = thread.summaries()
        for rank in self._others:
            message = thread.received[rank].content if rank in thread.received else {}
            summary = summaries.get(rank)
            reports.append(
                RankReport(
                    rank,
                    message.get("host", "an unknown host"),
                    message.get("pid", 0),
                    Position(*message.get("position", (0, 0, 0, 0))),
                    silent=rank in silent,
                    answered=summary is not None,
                    where=summary["where"] if summary else "",
                    waits_for_ranks=bool(summary and summary["ranks"]),
                    waits_for_disk=bool(summary and summary["disk"]),
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

    def _announce(self, diagnosis: HangDiagnosis) -> None:
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
            _start_writer(lambda: record_hang(self._directory, event, self._start_id)),
            _start_writer(lambda: record_failing_hosts(self._directory.root, failing, "hang", diagnosis.reason)),
            _start_writer(lambda: self.alert("the run hangs", message)),
            _start_writer(lambda: logger.error(message)),
        ]
        end = time.monotonic() + WRITING_SECONDS
        for writer in writers:
            writer.join(max(0.0, end - time.monotonic()))


def record_hang(directory: RunDirectory, event: HangEvent, start_id: str) -> None:
    """Append a hang to events.jsonl, unless another rank of this start has done so.

    Where a network is cut, the ranks that the store still answers name those that are silent. Each rank on the other
    side finds only that the store is silent, and waits before it calls this. Two events would contradict each other.

    Args:
        directory: of the run.
        event: of this rank.
        start_id: the same on all ranks, and another one for each start.
    """
    directory.logs.mkdir(parents=True, exist_ok=True)
    try:
        (directory.logs / f".hang-{start_id}").touch(exist_ok=False)  # only one rank can create it
    except FileExistsError:
        return
    JsonLines(directory.events).append(event.as_record())


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

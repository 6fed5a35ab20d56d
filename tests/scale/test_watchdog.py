"""Promises of the watchdog at the size of a large job: the right rank is named, and the store has little to do."""

import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import HashStore, TCPStore

from bigtrain.health import watchdog as module
from bigtrain.health.hang import HangDiagnosis
from bigtrain.health.heartbeat import Heartbeat
from bigtrain.health.watchdog import Bounds, HeartbeatThread, Watchdog
from bigtrain.rundir import RunDirectory
from tests.scale.growth import assert_grows
from tests.scale.other_ranks import POSITION, WAITS

SLOW_STORE = 150e-6
"""Seconds of a question to a store at the other end of a busy network."""


class Ended(BaseException):
    """Ends a thread of a watchdog in place of its process."""


class RemoteStore:
    """A store that counts the questions, each of which takes some seconds more."""

    def __init__(self, store: Any, seconds: float = 0.0) -> None:
        self._store, self._seconds, self.questions, self.closed = store, seconds, 0, False

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: object) -> Any:
            self.questions += 1
            if self.closed:
                raise Ended  # nothing else ends a heartbeat thread
            if self._seconds:
                time.sleep(self._seconds)
            return getattr(self._store, name)(*arguments)

        return ask


@pytest.fixture
def ends_by_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(_status: int) -> None:
        raise Ended

    monkeypatch.setattr(module, "os", SimpleNamespace(getpid=module.os.getpid, _exit=end))
    monkeypatch.setattr(module, "take_dump", lambda _saving: WAITS)
    monkeypatch.setattr(module, "report_end", lambda _reason: None)


class Leader(Watchdog):
    """The watchdog of rank 0, which keeps its diagnosis."""

    diagnosis: HangDiagnosis | None = None

    def _announce(self, diagnosis: HangDiagnosis) -> None:
        self.diagnosis = diagnosis


@dataclass
class OtherRanks:
    """A real store, and a process that plays all other ranks of any run."""

    store: TCPStore
    process: subprocess.Popen[str]

    def play(self, **run: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(run) + "\n")
        self.process.stdin.flush()


@pytest.fixture(scope="module")
def others() -> Iterator[OtherRanks]:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    command = [sys.executable, "-m", "tests.scale.other_ranks", str(store.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        yield OtherRanks(store, process)
        process.kill()


def diagnose_hang(others: OtherRanks, path: Path, bounds: Bounds, seconds: float, **run: Any) -> HangDiagnosis:
    """The diagnosis of rank 0's real watchdog and heartbeat thread, with a connection of their own to a real store.

    Args:
        seconds: that a question to the store takes more than on loopback.
        run: for tests/scale/other_ranks.py.
    """
    prefix = f"watch/{random.Random().getrandbits(64)}"
    heartbeat = Heartbeat()
    heartbeat.warm, heartbeat.position = True, POSITION
    topology: Any = SimpleNamespace(rank=0, world_size=bounds.ranks)
    leader = Leader(heartbeat, bounds, topology, RunDirectory(path))
    store = TCPStore("127.0.0.1", others.store.port, is_master=False, wait_for_workers=False)
    leader._thread = thread = HeartbeatThread(0, bounds, prefix)
    thread._store = remote = RemoteStore(store, seconds)
    others.play(prefix=prefix, bounds=vars(bounds), **run)
    store.wait([f"{prefix}/{bounds.ranks - 1}"], timedelta(seconds=120))
    thread.listening, leader._stalled = True, bounds.step / 2
    leader._update_message()
    threading.Thread(target=lambda: _until_ended(thread.run), daemon=True).start()
    watch = threading.Thread(target=lambda: _until_ended(leader._watch), daemon=True)
    watch.start()
    watch.join(120)
    remote.closed = True
    assert leader.diagnosis is not None, "no hang was found"
    return leader.diagnosis


def _until_ended(work: Any) -> None:
    with contextlib.suppress(Ended):
        work()


def assert_right_rank_is_named(
    others: OtherRanks, path: Path, bounds: Bounds, *, tries: int, at_once: int, silent: bool = False
) -> None:
    """In every try the culprit alone is a suspect, also where a quarter of the others send no summary in time."""

    def one(number: int) -> str:
        draw = random.Random(f"{bounds.ranks} {number}")
        culprit = draw.randrange(1, bounds.ranks)
        late = number % 4 == 3
        unknown = [] if not late else [r for r in range(1, bounds.ranks) if r != culprit and draw.random() < 0.25]
        diagnosis = diagnose_hang(
            others,
            path / str(number),
            bounds,
            SLOW_STORE if number % 2 else 0.0,
            culprit=culprit,
            unknown=unknown,
            silent=[culprit] if silent else [],
        )
        suspects = [report.rank for report in diagnosis.suspects]
        wanted = "does not answer: stopped" if silent else "has stalled: forward and backward, step 1001, at bigtrain"
        counted = f"{len(unknown)} ranks have not answered yet" in diagnosis.reason or not late or silent
        right = suspects == [culprit] and wanted in diagnosis.reason and counted
        return "" if right else f"try {number}: rank {culprit} is wanted: {len(suspects)} suspects: {diagnosis}"

    with ThreadPoolExecutor(at_once) as pool:
        wrong = [text for text in pool.map(one, range(tries)) if text]
    assert not wrong, "\n".join(wrong)


@pytest.mark.usefixtures("ends_by_exception")
def test_the_right_rank_of_a_thousand_is_named_on_a_slow_store_too(others, tmp_path):
    assert_right_rank_is_named(others, tmp_path, Bounds(8, 8, 1024), tries=4, at_once=4)


@pytest.mark.usefixtures("ends_by_exception")
@pytest.mark.long
@pytest.mark.parametrize(("ranks", "tries", "seconds"), [(1024, 12, 8), (16384, 8, 50)])
def test_the_right_rank_is_named_in_twenty_of_twenty_tries(ranks, tries, seconds, others, tmp_path):
    """With a store that takes 150 us a question in every second try, and late summaries in every fourth."""
    at_once = max(1, 4096 // ranks)
    assert_right_rank_is_named(others, tmp_path, Bounds(seconds, seconds, ranks), tries=tries, at_once=at_once)


@pytest.mark.usefixtures("ends_by_exception")
@pytest.mark.parametrize("ranks", [1024, pytest.param(16384, marks=pytest.mark.long)])
def test_one_silent_rank_of_very_many_is_named(ranks, others, tmp_path):
    assert_right_rank_is_named(others, tmp_path, Bounds(ranks / 1000, 20, ranks), tries=1, at_once=1, silent=True)


def message(number: float) -> dict[str, Any]:
    return {"number": number, "position": POSITION, "overdue": True}


def listener(store: Any, bounds: Bounds, rank: int) -> HeartbeatThread:
    """A heartbeat thread that is not started: the test calls what it does."""
    thread = HeartbeatThread(rank, bounds, "watch")
    thread._store, thread.listening, thread.message = store, True, message(0)
    return thread


def test_the_leader_asks_by_hundreds_and_another_rank_for_one_message():
    """Questions to the store of a round: a fraction of a question a rank for the leader, four for each other rank."""
    sizes = [512, 1024, 2048, 4096]

    def questions(ranks: int) -> dict[int, int]:
        store = RemoteStore(HashStore())
        for rank in range(ranks):
            store.set(f"watch/{rank}", json.dumps(message(0)))
        asked = {}
        for rank in (0, 1, 77, 511):
            thread, store.questions = listener(store, Bounds(300, 1800, ranks), rank), 0
            thread.exchange()
            assert len(thread.received) == (1 if rank else ranks - 1)
            asked[rank] = store.questions
        return asked

    asked = {ranks: questions(ranks) for ranks in sizes}
    assert_grows(sizes, lambda ranks: asked[ranks][0], at_most=1)
    assert asked[4096][0] < 4096 / 100
    assert {asked[ranks][rank] for ranks in sizes for rank in (1, 77, 511)} == {4}


def test_the_store_has_as_much_to_do_however_many_ranks_listen():
    """Ranks that listen ask less often when there are more of them, and never so seldom that they would be silent."""
    for ranks in (2, 64, 1024, 16384):
        bounds = Bounds(300, 1800, ranks)
        assert ranks / bounds.listening <= 3300 and bounds.listening <= bounds.silence / 2
        assert bounds.summaries >= 3 + bounds.listening - 1
    assert Bounds(300, 1800, 2).listening == 1 and 3 <= Bounds(300, 1800, 2).summaries < 3.1


def test_a_rank_that_saves_in_the_background_does_not_poll():
    """A save that is not late is no reason to ask the store for more than a message of one's own needs."""
    topology: Any = SimpleNamespace(rank=5, world_size=8)
    watchdog = Watchdog(Heartbeat(), Bounds(300, 1800, 8), topology, RunDirectory(Path("unused")))
    watchdog._thread = HeartbeatThread(5, Bounds(300, 1800, 8), "watch")
    watchdog.saving_since = lambda: time.monotonic() - 60
    watchdog._update_message()
    assert not watchdog._thread.listening
    watchdog.saving_since = lambda: time.monotonic() - 1000  # the leader may soon declare that it does not end
    watchdog._update_message()
    assert watchdog._thread.listening


@pytest.mark.parametrize("dead", [1, 8, 100, 3000])
def test_the_lowest_rank_that_answers_leads_also_when_thousands_are_gone(dead, monkeypatch):
    """It takes a silence for each factor of sixteen to find it, and another one until it may decide."""
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    bounds, store = Bounds(300, 1800, 4096), HashStore()
    for rank in range(4096):
        store.set(f"watch/{rank}", json.dumps(message(0)))
    alive = [listener(store, bounds, rank) for rank in (dead, dead + 1, 4095)]
    while not alive[0].leads:
        now += bounds.interval
        for thread in alive:
            thread.message = message(now)
            thread.exchange()
        assert now < 200, "longer than a hang may take to be found"
    assert [thread.leads for thread in alive] == [True, False, False]
    answering = [rank for rank in range(4096) if rank != dead and not alive[0].is_silent(rank)]
    assert answering == [dead + 1, 4095]


def test_a_rank_does_not_lead_before_it_knows_who_is_silent():
    """Rank 1, when rank 0 does not answer, has not heard of rank 2 before, and would accuse it."""
    store, bounds = HashStore(), Bounds(300, 1800, 3)
    one, two = listener(store, bounds, 1), listener(store, bounds, 2)
    for _ in range(3):
        two.exchange()
        one.exchange()
        assert not one.leads
    assert not one.is_silent(2)

"""Promises of the diagnosis of a hang: it names the rank that the others wait for, from the reports of all ranks."""

import threading
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bigtrain.health.hang import RankReport, diagnose
from bigtrain.health.heartbeat import Heartbeat, LoopPhase, Position
from bigtrain.health.watchdog import record_hang
from bigtrain.rundir import HangEvent, RunDirectory, read_events

phases = st.sampled_from([phase for phase in LoopPhase if phase != LoopPhase.START])
world_and_suspect = st.integers(2, 12).flatmap(lambda world: st.tuples(st.just(world), st.integers(0, world - 1)))


def waiting(world: int, step: int, phase: LoopPhase) -> list[RankReport]:
    """Ranks that wait for one that does not come."""
    return [
        RankReport(rank, f"host-{rank // 4}", 1000 + rank, Position(0, step, phase, 0), where="x", waits_for_ranks=True)
        for rank in range(world)
    ]


@given(ranks=world_and_suspect, step=st.integers(1, 10**6), phase=phases)
def test_a_silent_rank_is_the_suspect_whatever_it_sent_last(ranks, step, phase):
    world, suspect = ranks
    reports = waiting(world, step, phase)
    reports[suspect] = replace(reports[suspect], silent=True)
    diagnosis = diagnose(reports)
    assert [report.rank for report in diagnosis.suspects] == [suspect]
    assert f"rank {suspect} on host-{suspect // 4} (process {1000 + suspect}) does not answer" in str(diagnosis)


@given(ranks=world_and_suspect, step=st.integers(1, 10**6), early=phases, late=phases, next_step=st.booleans())
def test_a_rank_that_lags_is_the_suspect_wherever_it_waits(ranks, step, early, late, next_step):
    world, suspect = ranks
    if not next_step and early >= late:
        early, late = late, early
    reports = waiting(world, step + next_step, late)
    reports[suspect] = replace(reports[suspect], position=Position(0, step, early, 0))
    if reports[suspect].position == reports[suspect - 1].position:
        return
    assert [report.rank for report in diagnose(reports).suspects] == [suspect]


@given(ranks=world_and_suspect, step=st.integers(1, 10**6), phase=phases, saving=st.booleans())
def test_of_equals_the_suspect_is_the_one_outside_the_collective(ranks, step, phase, saving):
    """Of ranks that have come equally far, the one that waits for no other is the suspect."""
    world, suspect = ranks
    reports = waiting(world, step, phase)
    reports[suspect] = replace(
        reports[suspect], waits_for_ranks=False, waits_for_disk=True, where="checkpoint/folder.py:9"
    )
    diagnosis = diagnose(reports, saving)
    assert [report.rank for report in diagnosis.suspects] == [suspect]
    assert "checkpoint/folder.py:9" in str(diagnosis) and "disk" in str(diagnosis)


@given(world=st.integers(2, 12), step=st.integers(1, 10**6), phase=phases, waits=st.booleans())
def test_no_rank_is_a_suspect_where_all_look_alike(world, step, phase, waits):
    diagnosis = diagnose([replace(report, waits_for_ranks=waits) for report in waiting(world, step, phase)])
    assert diagnosis.suspects == [] and f"all {world} ranks" in str(diagnosis)


@given(st.lists(st.tuples(st.integers(0, 3), phases, st.integers(0, 2), st.booleans(), st.booleans()), min_size=1))
def test_any_hang_has_a_diagnosis_and_no_suspect_is_ahead(seen):
    """Any set of reports gets a diagnosis, and no rank that is ahead of another one is a suspect."""
    reports = [
        RankReport(rank, "h", rank, Position(0, step, phase, beats), silent=silent, waits_for_ranks=waits)
        for rank, (step, phase, beats, silent, waits) in enumerate(seen)
    ]
    diagnosis = diagnose(reports)
    assert str(diagnosis)
    if not any(report.silent for report in reports):
        least = min(report.position for report in reports)
        assert all(report.position == least for report in diagnosis.suspects)


def test_the_suspect_of_a_background_save_is_the_rank_that_writes():
    """How far the training of each rank has come does not matter then."""
    reports = waiting(3, 8, LoopPhase.DATA)
    reports[0] = replace(reports[0], position=Position(0, 7, LoopPhase.RECORD, 0))
    reports[2] = replace(reports[2], waits_for_ranks=False)
    diagnosis = diagnose(reports, saving=True)
    assert [report.rank for report in diagnosis.suspects] == [2] and "a background save" in str(diagnosis)


def test_a_rank_that_is_alone_learns_where_it_stalled():
    (report,) = waiting(1, 3, LoopPhase.DATA)
    where = "bigtrain/data/batch/loader.py:120 in __next__"
    diagnosis = diagnose([replace(report, waits_for_ranks=False, where=where)])
    assert diagnosis.suspects
    assert "has stalled: waiting for data, step 3, at bigtrain/data/batch/loader.py:120" in str(diagnosis)


def test_the_first_step_loads_and_saves_have_the_slow_bound():
    """The first step, which compiles, and what loads, evaluates or saves may take longer than a step."""
    heartbeat = Heartbeat()
    heartbeat.enter(LoopPhase.FORWARD_BACKWARD, 1)
    assert heartbeat.slow
    heartbeat.warm = True
    assert not heartbeat.slow
    slow = (LoopPhase.START, LoopPhase.EVALUATE, LoopPhase.SAVE, LoopPhase.REWIND, LoopPhase.FINISH)
    for phase in LoopPhase:
        heartbeat.enter(phase)
        assert heartbeat.slow == (phase in slow)
    before = heartbeat.position
    heartbeat.beat()
    assert heartbeat.position > before


def test_a_rank_that_has_gone_back_is_ahead_of_one_that_is_about_to():
    ahead, lagging = Heartbeat(), Heartbeat()
    for heartbeat in (ahead, lagging):
        heartbeat.enter(LoopPhase.RECORD, 9)
    ahead.enter(LoopPhase.REWIND, 4)
    ahead.enter(LoopPhase.DATA, 5)
    assert lagging.position < ahead.position


def test_all_ranks_may_wait_for_one_disk():
    reports = [replace(r, waits_for_ranks=False, waits_for_disk=True) for r in waiting(2, 4, LoopPhase.RECORD)]
    diagnosis = diagnose(reports)
    assert len(diagnosis.suspects) == 2 and "waiting for a disk" in str(diagnosis)


@given(ranks=world_and_suspect, step=st.integers(1, 10**6), phase=phases, data=st.data())
def test_a_rank_whose_summary_has_not_come_is_counted_and_accused_by_none(ranks, step, phase, data):
    """Its thread dump is unknown. It may be inside a collective as the others, so only its position may accuse it."""
    world, suspect = ranks
    unknown = data.draw(st.sets(st.integers(0, world - 1).filter(lambda rank: rank != suspect), max_size=world - 2))
    reports = waiting(world, step, phase)
    for rank in unknown:
        reports[rank] = replace(reports[rank], answered=False, where="", waits_for_ranks=False)
    nobody = diagnose(reports)
    assert nobody.suspects == [] and f"all {world} ranks are at the same point" in nobody.reason
    count = f"{len(unknown)} {'rank has' if len(unknown) == 1 else 'ranks have'} not answered yet"
    assert (count in nobody.reason) == bool(unknown)
    reports[suspect] = replace(reports[suspect], waits_for_ranks=False)
    named = diagnose(reports)
    assert [report.rank for report in named.suspects] == ([suspect] if len(unknown) < world - 1 else [])
    assert (count in named.reason) == bool(unknown)


def test_ranks_that_answered_alike_are_not_accused_where_one_is_unknown():
    """All have queued their work, so none is inside a collective; that one summary is late tells nothing of them."""
    reports = [replace(report, waits_for_ranks=False) for report in waiting(4, 3, LoopPhase.OPTIMIZER)]
    reports[2] = replace(reports[2], answered=False)
    assert diagnose(reports).suspects == []


def hang(step: int, verdict: str) -> HangEvent:
    return HangEvent(step=step, seconds=30, odd=[], verdict=verdict, exit_status=70)


def verdicts(directory: RunDirectory) -> list[str]:
    return [event["verdict"] for event in read_events(directory.events)]


def test_one_hang_is_one_event_whichever_ranks_are_cut_off(tmp_path: Path) -> None:
    """A cut network is one event: that of the ranks which the store answers, as they write first. The ranks of a host
    that is down with the store write one event among them, also where all of them write at the same time."""
    directory = RunDirectory(tmp_path / "run")
    record_hang(directory, hang(4, "rank 3 does not answer"), "start")
    for _ in range(2):
        record_hang(directory, hang(4, "the ranks' store does not answer"), "start")
    assert verdicts(directory) == ["rank 3 does not answer"]
    alone = RunDirectory(tmp_path / "alone")
    at_once = threading.Barrier(8)

    def record() -> None:
        at_once.wait()
        record_hang(alone, hang(4, "the ranks' store does not answer"), "start")

    threads = [threading.Thread(target=record) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts(alone) == ["the ranks' store does not answer"]


def test_a_hang_of_another_start_is_another_event(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    record_hang(directory, hang(4, "rank 3 does not answer"), "start")
    record_hang(directory, hang(4, "the ranks' store does not answer"), "next start")
    assert len(verdicts(directory)) == 2

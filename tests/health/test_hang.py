"""The verdict on a run that stands still names the rank that the others wait for, from what each says of itself."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from bigtrain.health.hang import Report, judge
from bigtrain.health.heartbeat import Heartbeat, Phase, Position

phases = st.sampled_from([phase for phase in Phase if phase != Phase.START])
worlds = st.integers(2, 12).flatmap(lambda world: st.tuples(st.just(world), st.integers(0, world - 1)))


def waiting(world: int, step: int, phase: Phase) -> list[Report]:
    """Ranks that wait for one that does not come."""
    return [
        Report(rank, f"host-{rank // 4}", 1000 + rank, Position(0, step, phase, 0), where="x", waits_for_ranks=True)
        for rank in range(world)
    ]


@given(world=worlds, step=st.integers(1, 10**6), phase=phases)
def test_a_rank_that_is_not_heard_of_is_the_one_whatever_it_said_last(world, step, phase):
    ranks, odd = world
    reports = waiting(ranks, step, phase)
    reports[odd] = replace(reports[odd], silent=True)
    verdict = judge(reports)
    assert [report.rank for report in verdict.odd] == [odd]
    assert f"rank {odd} on host-{odd // 4} (process {1000 + odd})" in str(verdict) and "does not answer" in str(verdict)


@given(world=worlds, step=st.integers(1, 10**6), behind=phases, ahead=phases, crossing=st.booleans())
def test_a_rank_that_is_behind_the_others_is_the_one_wherever_it_waits(world, step, behind, ahead, crossing):
    ranks, odd = world
    if not crossing and behind >= ahead:
        behind, ahead = ahead, behind
    reports = waiting(ranks, step + crossing, ahead)
    reports[odd] = replace(reports[odd], position=Position(0, step, behind, 0))
    if reports[odd].position == reports[odd - 1].position:
        return
    assert [report.rank for report in judge(reports).odd] == [odd]


@given(world=worlds, step=st.integers(1, 10**6), phase=phases, saving=st.booleans())
def test_of_ranks_that_came_equally_far_the_one_outside_the_collective_is_the_one(world, step, phase, saving):
    ranks, odd = world
    reports = waiting(ranks, step, phase)
    reports[odd] = replace(reports[odd], waits_for_ranks=False, waits_for_disk=True, where="checkpoint/folder.py:9")
    verdict = judge(reports, saving)
    assert [report.rank for report in verdict.odd] == [odd]
    assert "checkpoint/folder.py:9" in str(verdict) and "disk" in str(verdict)


@given(world=st.integers(2, 12), step=st.integers(1, 10**6), phase=phases, alike=st.booleans())
def test_nobody_is_accused_where_all_ranks_stand_alike(world, step, phase, alike):
    verdict = judge([replace(report, waits_for_ranks=alike) for report in waiting(world, step, phase)])
    assert verdict.odd == [] and f"all {world} ranks" in str(verdict)


@given(st.lists(st.tuples(st.integers(0, 3), phases, st.integers(0, 2), st.booleans(), st.booleans()), min_size=1))
def test_there_is_a_verdict_on_any_run_and_nobody_ahead_of_another_is_in_it(seen):
    reports = [
        Report(rank, "h", rank, Position(0, step, phase, beats), silent=silent, waits_for_ranks=waits)
        for rank, (step, phase, beats, silent, waits) in enumerate(seen)
    ]
    verdict = judge(reports)
    assert str(verdict)
    if not any(report.silent for report in reports):
        least = min(report.position for report in reports)
        assert all(report.position == least for report in verdict.odd)


def test_a_save_behind_the_training_is_judged_by_who_writes_however_far_the_training_is():
    reports = waiting(3, 8, Phase.DATA)
    reports[0] = replace(reports[0], position=Position(0, 7, Phase.RECORD, 0))
    reports[2] = replace(reports[2], waits_for_ranks=False)
    assert [report.rank for report in judge(reports, saving=True).odd] == [2]


def test_a_rank_alone_is_told_where_it_stands():
    (report,) = waiting(1, 3, Phase.DATA)
    verdict = judge([replace(report, waits_for_ranks=False, where="bigtrain/data/batch/loader.py:120 in __next__")])
    assert verdict.odd and "waiting for data, step 3, at bigtrain/data/batch/loader.py:120" in str(verdict)


def test_the_first_step_and_what_loads_or_saves_may_take_longer_than_a_step():
    heartbeat = Heartbeat()
    heartbeat.enter(Phase.FORWARD_BACKWARD, 1)
    assert heartbeat.slow
    heartbeat.warm = True
    assert not heartbeat.slow
    for phase in Phase:
        heartbeat.enter(phase)
        assert heartbeat.slow == (phase in (Phase.START, Phase.EVALUATE, Phase.SAVE, Phase.REWIND, Phase.FINISH))
    before = heartbeat.position
    heartbeat.beat()
    assert heartbeat.position > before


def test_a_rank_that_has_gone_back_is_ahead_of_one_that_is_about_to():
    ahead, behind = Heartbeat(), Heartbeat()
    for heartbeat in (ahead, behind):
        heartbeat.enter(Phase.RECORD, 9)
    ahead.enter(Phase.REWIND, 4)
    ahead.enter(Phase.DATA, 5)
    assert behind.position < ahead.position


def test_all_ranks_may_wait_for_one_disk():
    reports = [replace(r, waits_for_ranks=False, waits_for_disk=True) for r in waiting(2, 4, Phase.RECORD)]
    verdict = judge(reports)
    assert len(verdict.odd) == 2 and "waiting for a disk" in str(verdict)

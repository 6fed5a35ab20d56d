"""Putting a run together, in four stages, each of which returns what the next one needs.

    join          the ranks meet, the watchdog watches      -> JoinedRanks
    open_data     the datasets and the order of samples     -> OpenedData
    find_start    the newest good checkpoint, or step 0     -> StartPoint
    build         engine, guard and saver at that step      -> TrainingRun

Whatever can be wrong is found here, before the first step and before anything is written.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from bigtrain.base import LAUNCHER, check_temporary_folder, check_writable, on_every_rank, on_first_rank
from bigtrain.checkpoint import Change, Saver, Search, StorageTiers, newest_verified
from bigtrain.config import Settings
from bigtrain.data import Loader, RunData
from bigtrain.engine import Topology, check_machine
from bigtrain.health import Guard, Heartbeat, OwnWork, Watchdog
from bigtrain.observe import ALERTS, Tracker, log_to
from bigtrain.rundir import (
    Decision,
    Event,
    Parent,
    Phases,
    RunDirectory,
    RunState,
    number_of_next_start,
    parent_of,
    read_decisions,
    read_events,
    remembered_run_id,
    with_decisions,
)
from bigtrain.train.anomaly_policy import AnomalyPolicy
from bigtrain.train.best_step import BestStep
from bigtrain.train.build import engine_at, layout_of, meter_for, open_loader, open_run_data, ranks
from bigtrain.train.continuation import check_continuation
from bigtrain.train.dry_run import dry_run
from bigtrain.train.expected_parameters import check_expected_parameters
from bigtrain.train.introduce import introduce
from bigtrain.train.ownership import claim_checkpoints
from bigtrain.train.recorder import Recorder
from bigtrain.train.save_interval import SaveInterval, failure_history
from bigtrain.train.save_policy import SavePolicy
from bigtrain.train.step import LearningRate, TrainingStep
from bigtrain.train.stop import StopRequest
from bigtrain.train.superseded import remove_superseded
from bigtrain.train.training import TrainingRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JoinedRanks:
    """The ranks of this start, and what watches over them."""

    topology: Topology
    directory: RunDirectory
    stop: StopRequest
    heartbeat: Heartbeat
    watchdog: Watchdog
    phases: Phases


@dataclass(frozen=True)
class OpenedData:
    """What the run trains on, and the settings with all decisions about it."""

    settings: Settings
    data: RunData
    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class StartPoint:
    """Where this start of the run goes on from."""

    tiers: StorageTiers
    layout: str
    search: Search
    changes: Sequence[Change]
    """Settings that change the mathematics from here on."""
    loader: Loader
    """Gives the batches from here on."""

    @property
    def step(self) -> int:
        """The step of the checkpoint; 0 where there is none."""
        return self.search.newest.step if self.search.newest else 0

    @property
    def durable_step(self) -> int | None:
        """The step, where a durable checkpoint of it is there or none is needed."""
        newest = self.search.newest
        return None if newest and self.tiers.is_local(newest) else self.step


@contextmanager
def open_run(settings: Settings) -> Iterator[TrainingRun]:
    """Everything that training needs, at the step of the newest verified checkpoint.

    Raises:
        BigtrainError: on every rank, when anything is wrong on any; then nothing of an earlier start was changed.
    """
    with join(settings) as joined, ExitStack() as held:
        opened = open_data(settings, joined, held)
        start = find_start(opened, joined)
        held.callback(start.loader.close)
        run = build(start, opened, joined, held)
        introduce(run, start.search, start.changes, joined.phases)
        joined.stop.training_starts()
        yield run


@contextmanager
def join(settings: Settings) -> Iterator[JoinedRanks]:
    """Meet the other ranks, on a machine that can do what the settings ask for. Raises BigtrainError."""
    phases, stop, heartbeat = Phases(), StopRequest(), Heartbeat()
    stop.listen()
    if (warning := check_temporary_folder()) and LAUNCHER not in os.environ:  # which has said it
        logger.warning(warning)
    check_expected_parameters(settings.model)
    with ranks(settings.engine) as topology:
        directory = RunDirectory(settings.run_dir)
        watchdog = Watchdog.start(heartbeat, settings.guard, topology, directory)
        try:
            check_machine(settings, topology)
            phases.end("process group")
            yield JoinedRanks(topology, directory, stop, heartbeat, watchdog, phases)
        finally:
            watchdog.stop()


def open_data(settings: Settings, joined: JoinedRanks, held: ExitStack) -> OpenedData:
    """Open the data, and make the run directory ours, for as long as `held` lasts.

    Raises:
        BigtrainError: the data were not built, or with other settings; or the run directory holds other files, or
            another job is at work there.
    """
    topology, directory = joined.topology, joined.directory
    data = open_run_data(settings, topology)
    joined.heartbeat.beat()
    joined.phases.end("data")
    on_first_rank(topology, lambda: _claim(directory))
    held.callback(directory.unlock)
    decisions = on_first_rank(topology, lambda: read_decisions(directory.decisions))
    if decisions:
        settings = with_decisions(settings, decisions)
        data = on_every_rank(topology, lambda: data.replanned(settings))
    return OpenedData(settings, data, decisions)


def find_start(opened: OpenedData, joined: JoinedRanks) -> StartPoint:
    """Look for the newest good checkpoint, and make sure that the run may go on from it and save.

    Raises:
        BigtrainError: it may not.
    """
    settings, data, decisions = opened.settings, opened.data, opened.decisions
    topology, directory = joined.topology, joined.directory
    tiers = on_every_rank(topology, lambda: StorageTiers.of(directory.root, settings.checkpoint))
    on_every_rank(topology, lambda: _check_storage(tiers, topology))
    on_first_rank(topology, lambda: claim_checkpoints(directory, settings.checkpoint))
    remove_superseded(tiers, decisions, topology)
    layout = layout_of(settings, topology)
    search = newest_verified(tiers, ranks=topology, layout=layout)
    joined.heartbeat.beat()
    changes = on_first_rank(topology, lambda: check_continuation(directory, search, settings, data.plan, decisions))
    first_sample = search.summary.cursor.consumed_samples if search.summary else 0
    loader = open_loader(data, first_sample, settings.train.micro_batch_size, topology)
    joined.phases.end("checkpoint search")
    return StartPoint(tiers, layout, search, changes, loader)


def build(start: StartPoint, opened: OpenedData, joined: JoinedRanks, held: ExitStack) -> TrainingRun:
    """Build what trains, at the start point, and try whether a step fits into memory. Raises BigtrainError."""
    settings, data, topology, directory = opened.settings, opened.data, joined.topology, joined.directory
    log_file = directory.rank_log(topology.rank)
    on_every_rank(topology, lambda: log_to(topology.rank, log_file, local_rank=topology.local_rank))
    engine, state = engine_at(start.search.newest, settings, topology)
    joined.heartbeat.beat()
    joined.phases.end("model and checkpoint")
    guard = Guard.of(settings, data.plan)
    guard.restore({} if start.changes else state.guard)
    saver = Saver(
        start.tiers, topology.background(), settings.checkpoint, layout=start.layout, durable_step=start.durable_step
    )
    held.callback(saver.close)
    joined.watchdog.saving_since = lambda: saver.saving_since
    saver.reserve(engine.fragments(), engine.rng_state())
    dry_run(engine, settings, topology)
    joined.phases.end("dry run")

    history: list[dict[str, Any]] = []
    on_first_rank(topology, lambda: directory.write_config(settings))
    if topology.rank == 0:
        history = list(read_events(directory.events))
    meter = meter_for(settings, topology, history)
    parent = parent_of(directory, history, start.step, state) if topology.rank == 0 else None
    tracker = _tracker_for(settings, history, state, parent) if topology.rank == 0 else Tracker()
    held.callback(tracker.finish, {}, exit_code=1)  # if something goes wrong; else it is finished by then
    joined.watchdog.alert = tracker.alert_and_wait
    own_work = OwnWork(settings, topology)
    number = number_of_next_start(history) if topology.rank == 0 else None
    recorder = on_every_rank(
        topology, lambda: Recorder(directory, topology, settings.tracking, meter, tracker, own_work, number)
    )
    training = TrainingStep(
        engine,
        topology,
        LearningRate(settings),
        stages=settings.stages,
        done=start.step,
        timing=meter.timing,
        heartbeat=joined.heartbeat,
    )
    run = TrainingRun(
        settings=settings,
        topology=topology,
        directory=directory,
        data=data,
        loader=start.loader,
        training=training,
        saver=saver,
        tiers=start.tiers,
        saves=SavePolicy(settings.checkpoint, start.step, _save_interval_for(settings, topology, history)),
        anomalies=AnomalyPolicy(settings.guard, guard, recorder.note),
        recorder=recorder,
        stop=joined.stop,
        heartbeat=joined.heartbeat,
        decisions=opened.decisions,
        parent=parent,
        best=BestStep.of(state.best),
        base=state.base,
    )
    held.callback(lambda: run.loader.close())  # after a rewind it has another one
    joined.phases.end("meter and tracker")
    return run


def _claim(directory: RunDirectory) -> None:
    directory.refuse_foreign()
    directory.lock()


def _check_storage(tiers: StorageTiers, topology: Topology) -> None:
    """See on every host that checkpoints can be written to both tiers. Raises BigtrainError."""
    if topology.local_rank == 0:
        tiers.durable.check_writable()
        if tiers.local is not None:
            check_writable(tiers.local.directory, "checkpoint.local_dir")


def _tracker_for(
    settings: Settings, history: Sequence[Mapping[str, Any]], state: RunState, parent: Parent | None
) -> Tracker:
    """The W&B run of all starts: the one that the run's records know, else the one that its checkpoint came from. A
    branch starts one of its own."""
    known = None if parent else remembered_run_id(history) or state.wandb_run_id
    tracker = Tracker.start(settings, known)
    if parent:
        tracker.describe({"parent": parent.as_record()})
    if history and history[-1]["event"] == Event.HANG:  # rank 0, which has the tracker, may have been the one that hung
        tracker.alert("hang", str(history[-1].get("verdict", "")), ALERTS["hang"])
    return tracker


def _save_interval_for(
    settings: Settings, topology: Topology, history: Sequence[Mapping[str, Any]]
) -> SaveInterval | None:
    """What chooses the time between two saves, on rank 0, where the settings leave that open."""
    if topology.rank or settings.checkpoint.every_minutes != "auto":
        return None
    return SaveInterval(failure_history(history), topology.world_size)

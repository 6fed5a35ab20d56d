"""`bigtrain replay`: one step of a run once more, exactly, and which documents in it the model found hard.

From the newest checkpoint before the step everything is as it was: the steps in between are trained again, on their
batches, and at the same world size each gives the same loss and gradient norm to the last bit. Nothing is saved or
recorded: the run directory is only read, and the run may even be training.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigtrain.base.errors import BigtrainError
from bigtrain.checkpoint import Places, Saver, Search, newest_verified
from bigtrain.checkpoint.compatibility import Change, changes_since
from bigtrain.config import Settings, mathematics
from bigtrain.data import RankBatch, load_tokenizer
from bigtrain.data.provenance.provenance import contents_of
from bigtrain.data.run_data import RunData
from bigtrain.engine.agreement import on_every_rank, on_first_rank
from bigtrain.engine.requirements import check_machine
from bigtrain.engine.topology import Topology
from bigtrain.health.spikes import Guard
from bigtrain.health.stragglers import OwnWork
from bigtrain.observe.tracking import Tracker
from bigtrain.rundir.decisions import read_decisions, without_decisions
from bigtrain.rundir.directory import RunDirectory
from bigtrain.rundir.json_lines import read_json_lines
from bigtrain.train.continuation import check_plan
from bigtrain.train.document_losses import by_document, losses_of_rows
from bigtrain.train.setup import engine_at, layout_of, meter_for, ranks
from bigtrain.train.stop import StopRequest
from bigtrain.train.training import Agreement, TrainingRun

Record = dict[str, Any]


@dataclass(frozen=True)
class Replay:
    """A step, done once more."""

    run: str
    step: int
    from_step: int
    """Of the checkpoint it was done from; 0: from the first weights."""
    world_size: int
    plan_id: str
    batch_digest: str
    loss: float
    grad_norm: float
    recorded: Record | None
    """The line of metrics.jsonl for this step with this batch; None where there is none."""
    changed: list[Change]
    """Settings that change the mathematics and are others today than when the checkpoint was written."""
    documents: list[Record]
    """Of the batch, highest loss first, under the weights before the step."""

    @property
    def same_bits(self) -> bool | None:
        """Whether loss and gradient norm are those on record; None where none are."""
        if self.recorded is None:
            return None
        return (self.loss, self.grad_norm) == (self.recorded["loss"], self.recorded["grad_norm"])

    def as_dict(self) -> Record:
        """For JSON."""
        return {**asdict(self), "same_bits": self.same_bits}


def replay(
    run: Path,
    step: int,
    *,
    skipped: bool = False,
    text: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Replay | None:
    """Do one step of a run again. Under a launcher every rank calls it, and rank 0 has the answer.

    Args:
        run: a run directory.
        step: from 1; need not be done yet.
        skipped: the step as it was before the run decided to leave out its batch.
        text: add the text of each document.
        report: told what is going on, on rank 0.

    Raises:
        BigtrainError: no run or step, or its data or checkpoints are not there any more.
    """
    directory = RunDirectory.of_existing_run(run)
    settings, before = course_of(directory, step, skipped=skipped)
    if not 1 <= step <= settings.total_steps:
        raise BigtrainError(f"{run} has no step {step}", found=step, wanted=f"from 1 to {settings.total_steps}")
    with ranks(settings) as topology, ExitStack() as held:
        check_machine(settings, topology)
        data = on_every_rank(topology, lambda: RunData.open(settings))
        places = on_every_rank(topology, lambda: Places.of(directory.root, settings.checkpoint))
        search = newest_verified(places, ranks=topology, layout=layout_of(settings, topology), before=before)
        changed = on_first_rank(topology, lambda: changes_before(search, settings, data))
        trainee = trainee_at(search, settings, data, topology, directory, places)
        held.callback(trainee.loader.close)
        held.callback(trainee.saver.close)
        told = report if topology.rank == 0 else lambda line: None
        from_step = trainee.step
        if step - 1 > from_step:
            told(f"steps {from_step + 1} to {step - 1}, from {'a checkpoint' if from_step else 'the first weights'}")
        while trainee.step < step - 1:
            trainee.optimize(*fetch(trainee))
        told(f"step {step}")
        batch, agreed = fetch(trainee)
        losses, labelled = losses_of_rows(trainee.engine, topology, batch)
        loss, update = trainee.optimize(batch, agreed)
        if topology.rank != 0:
            return None
        contents = contents_of(data.plan, data.train, data.plan.batches.samples_of(step))
        tokenizer = load_tokenizer(settings.data.dir) if text else None
        return Replay(
            run=str(run),
            step=step,
            from_step=from_step,
            world_size=topology.world_size,
            plan_id=data.plan.plan_id,
            batch_digest=agreed.batch_digest,
            loss=loss,
            grad_norm=update.grad_norm,
            recorded=recorded(directory, step, agreed.batch_digest),
            changed=changed,
            documents=[document.as_record(tokenizer) for document in by_document(contents, losses, labelled)],
        )


def course_of(directory: RunDirectory, step: int, *, skipped: bool) -> tuple[Settings, int]:
    """The settings under which the run did a step, and the step before which checkpoints are of that course of it.

    Raises:
        BigtrainError: no decision left the step's batch out.
    """
    settings = directory.settings()
    if not skipped:
        return settings, step
    decisions = read_decisions(directory.decisions)
    for decision in reversed(decisions):
        if step in decision.steps:
            return without_decisions(settings, decisions[decision.decision - 1 :]), min(step, decision.steps.start)
    ranges = ", ".join(f"{decision.steps[0]} to {decision.steps[-1]}" for decision in decisions)
    raise BigtrainError(
        f"{directory.root} has never decided to leave out the batch of step {step}",
        found=f"left out: the batches of steps {ranges}" if ranges else f"no decision in {directory.decisions}",
        fix="replay it without --skipped",
    )


def changes_before(search: Search, settings: Settings, data: RunData) -> list[Change]:
    """What has changed in the settings since the checkpoint. Raises BigtrainError where the data have."""
    if search.newest is None:
        return []
    manifest = search.newest.manifest
    check_plan(manifest, data.plan)
    return changes_since(manifest.mathematics, mathematics(settings))


def trainee_at(
    search: Search, settings: Settings, data: RunData, topology: Topology, directory: RunDirectory, places: Places
) -> TrainingRun:
    """A training that stands where the checkpoint does and keeps no records."""
    step = search.newest.step if search.newest else 0
    first_sample = data.plan.batches.consumed_after(step)
    loader = on_every_rank(
        topology,
        lambda: data.loader(
            settings.train.micro_batch_size, first_sample, rank=topology.data_rank, world_size=topology.data_size
        ),
    )
    engine, _ = engine_at(search.newest, settings, topology)
    stop = StopRequest()
    stop.listen()
    return TrainingRun(
        settings=settings,
        topology=topology,
        directory=directory,
        data=data,
        loader=loader,
        engine=engine,
        guard=Guard.of(settings, data.plan),
        decisions=(),
        places=places,
        meter=meter_for(settings, topology),
        tracker=Tracker(),
        saver=Saver(Places(places.durable), topology.behind()),
        stop=stop,
        step=step,
        own_work=OwnWork(settings, topology),
    )


def fetch(trainee: TrainingRun) -> tuple[RankBatch, Agreement]:
    """The next batch. Raises BigtrainError where a signal says to stop."""
    batch, agreed = trainee.fetch()
    if agreed.stop_reason:
        raise BigtrainError(f"stopped by {agreed.stop_reason} before the step was done").on_all_ranks()
    return batch, agreed


def recorded(directory: RunDirectory, step: int, digest: str) -> Record | None:
    """The last line of metrics.jsonl for a step with this batch: one that was trained on other data is another step."""
    of_step = [record for record in read_json_lines(directory.metrics) if record["step"] == step]
    return next((record for record in reversed(of_step) if record["batch_digest"] == digest), None)

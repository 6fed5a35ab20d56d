"""`bigtrain replay`: do one step of a run again, exactly, and show the loss of each document in it.

It starts from the newest checkpoint before the step and trains the steps in between again, on their batches. At the
same world size each gives the same loss and gradient norm to the last bit. Nothing is saved or recorded: the run
directory is only read, and the run may be training meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from bigtrain.base import BigtrainError, first_of, gather, on_every_rank, on_first_rank
from bigtrain.checkpoint import Change, Search, StorageTiers, changes_since, newest_verified
from bigtrain.config import Settings, mathematics
from bigtrain.data import Loader, RankBatch, RunData, format_digest, load_tokenizer
from bigtrain.engine import Topology, check_machine
from bigtrain.health import enough_memory
from bigtrain.rundir import RunDirectory, read_decisions, read_metrics_lines, without_decisions
from bigtrain.train import (
    LearningRate,
    StepOutcome,
    StopRequest,
    TrainingStep,
    Vote,
    check_plan,
    documents_of,
    engine_at,
    layout_of,
    losses_of_parts,
    open_loader,
    open_run_data,
    ranks,
    require_labels,
)

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReplayedDocument:
    """A part of a document in the batch, and the loss of the model there."""

    loss: float
    """Mean over the tokens with a label, in nats; 0 where there are none."""
    loss_tokens: int
    """The tokens with a label."""
    source: str
    sample: int
    """The number of the sample in the whole schedule, from 0."""
    id: str
    """Of the document, the same in every build."""
    file: str
    """The file of the source that the document is from."""
    position: int
    """Its number in that file, from 0."""
    start: int
    """The first token of the part, counted from the start of the document."""
    end: int
    """The token after its last one."""
    tokens: int
    """Of the whole document."""
    labelled: bool
    """False where data.skip took the labels away."""
    text: str | None = None
    """Of the part, where it was asked for."""


@dataclass(frozen=True)
class Replay:
    """A step that was done again."""

    run: str
    step: int
    from_step: int
    """The step of the checkpoint that it started from; 0: from the initial weights."""
    world_size: int
    plan_id: str
    batch_digest: str
    loss: float
    grad_norm: float
    recorded: Record | None
    """The line of metrics.jsonl for this step with this batch; null where there is none."""
    changed: list[Change]
    """Settings that change the mathematics and differ from those of the checkpoint: key, value then, value now."""
    documents: list[ReplayedDocument]
    """The documents of the batch, highest loss first, under the weights before the step."""
    same_bits: bool | None
    """Whether loss and gradient norm are the recorded ones; null where none are recorded."""


def replay(
    run: Path,
    step: int,
    *,
    skipped: bool = False,
    text: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Replay | None:
    """Do one step of a run again. Under a launcher every rank calls it, and rank 0 has the result.

    Args:
        run: a run directory.
        step: from 1; the run need not have done it yet.
        skipped: do the step as it was before the run decided to leave out its batch.
        text: add the text of each document.
        report: called with each line of progress, on rank 0.

    Raises:
        BigtrainError: no run or step, or its data or checkpoints are gone.
    """
    directory = RunDirectory.of_existing_run(run)
    settings, before = course_of(directory, step, skipped=skipped)
    if not 1 <= step <= settings.total_steps:
        raise BigtrainError(f"{run} has no step {step}", found=step, wanted=f"from 1 to {settings.total_steps}")
    with ranks(settings.engine) as topology, ExitStack() as held:
        check_machine(settings, topology)
        data = open_run_data(settings, topology)
        tiers = on_every_rank(topology, lambda: StorageTiers.of(directory.root, settings.checkpoint))
        search = newest_verified(tiers, ranks=topology, layout=layout_of(settings, topology), before=before)
        changed = on_first_rank(topology, lambda: changes_before(search, settings, data))
        from_step = search.newest.step if search.newest else 0
        first_sample = data.plan.batches.consumed_after(from_step)
        loader = open_loader(data, first_sample, settings.train.micro_batch_size, topology)
        held.callback(loader.close)
        engine, _ = engine_at(search.newest, settings, topology)
        training = TrainingStep(engine, topology, LearningRate(settings), stages=settings.stages, done=from_step)
        stop = StopRequest()
        stop.listen()

        def fetch() -> tuple[RankBatch, Vote]:
            return fetch_batch(loader, stop, topology, training.done + 1)

        def take(batch: RankBatch, vote: Vote) -> StepOutcome:
            with enough_memory(settings, topology, f"step {training.done + 1}"):
                return training.take(batch, vote.labels)

        say = report if topology.rank == 0 else lambda line: None
        if step - 1 > from_step:
            say(f"steps {from_step + 1} to {step - 1}, from {'a checkpoint' if from_step else 'the first weights'}")
        while training.done < step - 1:
            take(*fetch())
        say(f"step {step}")
        batch, vote = fetch()
        training.rotate_as_in(step)
        of_ranks = gather(topology, losses_of_parts(engine, topology, batch))
        outcome, digest = take(batch, vote), format_digest(vote.batch_digest)
        if of_ranks is None:
            return None
        losses = sorted(chain.from_iterable(of_ranks), key=lambda part: part.order)
        tokenizer = load_tokenizer(settings.data.dir) if text else None
        on_record = recorded(directory, step, digest)
        kept = on_record and (on_record["loss"], on_record["grad_norm"])
        return Replay(
            run=str(run),
            step=step,
            from_step=from_step,
            world_size=topology.world_size,
            plan_id=data.plan.plan_id,
            batch_digest=digest,
            loss=outcome.loss,
            grad_norm=outcome.grad_norm,
            recorded=on_record,
            changed=changed,
            documents=[
                ReplayedDocument(**document.as_record(tokenizer))
                for document in documents_of(data, data.plan.batches.samples_of(step), losses)
            ],
            same_bits=None if on_record is None else (outcome.loss, outcome.grad_norm) == kept,
        )


def course_of(directory: RunDirectory, step: int, *, skipped: bool) -> tuple[Settings, int]:
    """The settings under which the run did a step, and the step before which its checkpoints belong to them.

    Raises:
        BigtrainError: no decision left the step's batch out.
    """
    settings = directory.settings_for_data()
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
    """The changes of the settings since the checkpoint. Raises BigtrainError where the data changed."""
    if search.summary is None:
        return []
    check_plan(search.summary, data.plan)
    at_that_step = settings.at_step(search.summary.cursor.step)
    return changes_since(search.summary.mathematics, mathematics(at_that_step))


def fetch_batch(loader: Loader, stop: StopRequest, topology: Topology, step: int) -> tuple[RankBatch, Vote]:
    """The next batch, which is that of `step`, and the sum of the votes of all ranks.

    Raises:
        BigtrainError: on every rank, when any cannot load its share, when there is nothing to train on, or when a
            signal asks to stop.
    """
    batch = on_every_rank(topology, lambda: next(loader))
    vote = Vote.on(batch, counts_batch=topology.shard_rank == 0, stops=stop.reason is not None).summed(topology)
    if vote.stops:
        raise BigtrainError(f"stopped by {first_of(topology, stop.reason)} before the step was done").on_all_ranks()
    require_labels(vote, step)
    return batch, vote


def recorded(directory: RunDirectory, step: int, digest: str) -> Record | None:
    """The last line of metrics.jsonl for a step with this batch; lines with another batch do not count."""
    of_step = [record for record in read_metrics_lines(directory.metrics) if record["step"] == step]
    return next((record for record in reversed(of_step) if record.get("batch_digest") == digest), None)

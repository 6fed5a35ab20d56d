"""The answer to a spike: back to the newest checkpoint before it, past the batches around it, and on, in one process.

    decide    where to go back to and which batches to leave out; durable on the disk before anything is done
    act       remove superseded checkpoints | data and loader by the new plan | restore weights, moments and guard
    explain   which documents of the worst batch have the highest loss under the restored weights

Steps keep their numbers: after going back to step 800 with the batches of steps 903 to 1107 left out, steps 801 to 902
train on the same batches as before, bit for bit, and step 903 trains on the batch that step 1108 would have had. A kill
between deciding and acting does no harm: the next start acts on the decisions that it finds.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from bigtrain.base import BigtrainError, on_every_rank, on_first_rank, reached
from bigtrain.checkpoint import Checkpoint, newest_verified, reinitialize
from bigtrain.config import SkipSettings
from bigtrain.data import RunData, load_tokenizer
from bigtrain.engine import COMPUTE_DTYPES
from bigtrain.health import Assessment, Guard, LoopPhase
from bigtrain.rundir import (
    Decision,
    EvidenceEvent,
    GaveUpEvent,
    RunState,
    consecutive_rewinds,
    count_evidence,
    evidence_of,
    read_events,
    with_decisions,
    write_decision,
)
from bigtrain.train.best_step import BestStep
from bigtrain.train.build import first_weight, first_weights, layout_of, open_loader, restore
from bigtrain.train.continuation import standing_commits
from bigtrain.train.document_losses import documents_by_loss
from bigtrain.train.superseded import remove_superseded
from bigtrain.train.training import TrainingRun

logger = logging.getLogger(__name__)

WORST_DOCUMENTS = 8
EXCERPT = 500
"""Characters of each."""


def rewind(run: TrainingRun, anomaly: Assessment) -> None:
    """Go back to a step before the anomaly, and leave out the batches that led to it. Every rank calls it.

    Raises:
        BigtrainError: it was tried too often, no earlier checkpoint is left, or the data do not last to the end; then
            nothing was decided. Or a checkpoint cannot be loaded; then the next start goes back.
    """
    run.heartbeat.enter(LoopPhase.REWIND)
    run.saver.wait()
    run.record_commits()
    checkpoint, decision, data = decide(run, anomaly)
    reached("guard.decided")
    run.heartbeat.enter(LoopPhase.REWIND, decision.rewind_to)
    before = run.data
    act(run, checkpoint, decision, data)
    run.heartbeat.beat()
    explain(run, anomaly, before)


def decide(run: TrainingRun, anomaly: Assessment) -> tuple[Checkpoint | None, Decision, RunData]:
    """The checkpoint to go back to (None: the first weights), the durable decision, and the data in their new order.

    Raises:
        BigtrainError: see `rewind`.
    """
    guard = run.settings.guard
    repeated = consecutive_rewinds(run.decisions, anomaly.first_step, guard.window)
    if repeated >= guard.max_rewinds:
        raise gave_up(run, anomaly, repeated)
    checkpoint = checkpoint_before(run, anomaly)
    rewind_to = checkpoint.step if checkpoint else 0
    first = max(rewind_to + 1, anomaly.first_step - guard.skip_before)
    skip = SkipSettings(steps=(first, anomaly.last_step + guard.skip_after), reason=f"guard: {anomaly}")
    number, position = len(run.decisions) + 1, len(run.settings.data.skip)
    decision = Decision(number, anomaly.kind, anomaly.outliers, rewind_to, skip, position)
    data = on_every_rank(run.topology, lambda: run.data.replanned(with_decisions(run.settings, [decision])))

    digest, documents = _evidence(run, anomaly.worst.step)

    def write() -> Decision:
        decided = replace(decision, evidence=evidence_of(run.data, anomaly.worst.step, digest, documents))
        write_decision(run.directory.decisions, decided)
        return decided

    return checkpoint, on_first_rank(run.topology, write), data


def _evidence(run: TrainingRun, step: int) -> tuple[int, int]:
    """The digest of the batch of a step, as int64, and its number of documents. Each rank looks at its own rows."""
    topology, data = run.topology, run.data
    rank, size = topology.data_rank, topology.data_size
    own = on_every_rank(topology, lambda: count_evidence(data, step, rank, size))
    digest, documents = topology.sum_across_ranks(own if topology.shard_rank == 0 else (0, 0))
    return int(digest), int(documents)


def checkpoint_before(run: TrainingRun, anomaly: Assessment) -> Checkpoint | None:
    """The newest good checkpoint older than all batches to be left out; else the newest one older than the anomaly.

    Raises:
        BigtrainError: there were such checkpoints and none is left; the run does not start over from the first weights.
    """
    layout = layout_of(run.settings, run.topology)
    for step in (max(1, anomaly.first_step - run.settings.guard.skip_before), anomaly.first_step):
        search = newest_verified(run.tiers, ranks=run.topology, layout=layout, before=step)
        if search.newest is not None:
            return search.newest
    events, decisions = run.directory.events, run.decisions
    commits = on_first_rank(run.topology, lambda: standing_commits(read_events(events), decisions))
    if lost := [step for step in commits if step < anomaly.first_step]:
        raise BigtrainError(
            "no checkpoint from before the anomaly is left to go back to; nothing was changed",
            found=f"{anomaly}; the last checkpoint before it was that of step {max(lost)}",
            wanted="a good checkpoint of an earlier step",
            fix="put one back; or keep more of them (checkpoint.keep); or go on all the same, with guard.on_spike=note",
        ).on_all_ranks()
    return None


def act(run: TrainingRun, checkpoint: Checkpoint | None, decision: Decision, data: RunData) -> None:
    """Carry the decision out: the run is at the earlier step, with the batches left out."""
    run.recorder.decision(decision, run.step)
    step = decision.rewind_to
    logger.warning(
        f"step {run.step}  going back to step {step}; the batches of steps {decision.steps[0]} to {decision.steps[-1]} "
        f"are left out (decision {decision.decision} in {run.directory.decisions.name})"
    )
    run.decisions = (*run.decisions, decision)
    run.settings, run.data = with_decisions(run.settings, run.decisions), data
    on_first_rank(run.topology, lambda: run.directory.write_config(run.settings))
    remove_superseded(run.tiers, run.decisions, run.topology)

    run.loader.close()
    first_sample = run.data.plan.batches.consumed_after(step)
    run.loader = open_loader(data, first_sample, run.settings.train.micro_batch_size, run.topology)
    state = restore(run.training.engine, checkpoint, run.topology) if checkpoint else restart(run)
    run.anomalies.start_over(Guard.of(run.settings, run.data.plan), state.guard)
    run.go_back(step, BestStep.of(state.best), is_durable=checkpoint is None or not run.tiers.is_local(checkpoint))


def restart(run: TrainingRun) -> RunState:
    """Put the engine before step 1; returns the state of the run there, which is empty.

    The random generators stay as they are: no step draws from them.
    """
    settings, device = run.settings, run.topology.device
    given = first_weights(settings, run.topology)

    def first_value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        weights = torch.empty(shape, device=device)
        first_weight(name, weights, given or {}, settings)
        return weights.to(COMPUTE_DTYPES[settings.engine.precision])

    engine = run.training.engine
    on_every_rank(run.topology, lambda: reinitialize(engine.fragments(), first_value))
    engine.restore(0, engine.first_loss_scaler)
    run.training.model.set_router_moves({} if given is None else given.router_moves)
    return RunState(base=run.base)


def explain(run: TrainingRun, anomaly: Assessment, data: RunData) -> None:
    """Record the documents with the highest loss in the worst batch, under the weights before the anomaly.

    Args:
        run: the run, after it went back.
        anomaly: the reason for going back.
        data: in the order before the decision.
    """
    step = anomaly.worst.step
    run.training.rotate_as_in(step)
    try:
        documents = documents_by_loss(run.training.engine, run.topology, data, run.settings, step, most=WORST_DOCUMENTS)
    except BigtrainError as error:  # all ranks have it, or rank 0 after its last word; the run can go on without it
        logger.warning(f"step {step} cannot be looked at: {error}")
        return
    finally:
        run.training.rotate_as_in(run.step)
    if run.topology.rank == 0:
        tokenizer = load_tokenizer(run.settings.data.dir)
        worst = [document.as_record(tokenizer, excerpt=EXCERPT) for document in documents]
        run.recorder.note(EvidenceEvent(len(run.decisions), step, worst), run.step)


def gave_up(run: TrainingRun, anomaly: Assessment, repeated: int) -> BigtrainError:
    """The error where going back does not help."""
    run.recorder.note(GaveUpEvent([anomaly.first_step, anomaly.last_step], repeated), run.step)
    return BigtrainError(
        f"the run has gone back {repeated} time(s) in a row and the anomaly returns; leaving batches out does not help",
        found=str(anomaly),
        wanted=f"{run.settings.guard.window} good steps after the last anomaly (guard.window)",
        fix=f"look at {run.directory.decisions} and at `bigtrain replay {run.directory.root} --step "
        f"{anomaly.first_step}`; lower optimizer.learning_rate or lengthen schedule.warmup_steps "
        "(checkpoint.allow_change); or raise guard.max_rewinds",
    ).on_all_ranks()

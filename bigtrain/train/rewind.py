"""The answer to a spike: back to the newest checkpoint before it, past the batches around it, and on, in one process.

    decide    where to go back to, which batches to leave out; durable on the disk before anything is done
    act       void checkpoints go | data and loader by the new plan | weights, moments, guard as they were then
    explain   which documents of the worst batch have the highest loss under the weights of then

Steps keep their numbers: after going back to step 800 with the batches of steps 903 to 1107 left out, steps 801 to 902
train on what they did before, bit for bit, and step 903 on what would have been step 1108's. A kill between deciding
and acting is no matter: a start does the same from the decisions it finds.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from bigtrain.base.errors import BigtrainError
from bigtrain.base.faults import reached
from bigtrain.checkpoint import Checkpoint, begin_anew, newest_verified
from bigtrain.config import Settings
from bigtrain.config.data_settings import SkipSettings
from bigtrain.data import load_tokenizer
from bigtrain.data.run_data import RunData
from bigtrain.engine.agreement import on_every_rank, on_first_rank
from bigtrain.engine.precision import COMPUTE_DTYPES
from bigtrain.health.heartbeat import Phase
from bigtrain.health.spikes import Guard, Verdict
from bigtrain.model import initialize
from bigtrain.rundir.decisions import Decision, in_a_row, with_decisions, write_decision
from bigtrain.rundir.json_lines import read_json_lines
from bigtrain.rundir.provenance import evidence_of
from bigtrain.train.continuation import standing_commits
from bigtrain.train.document_losses import documents_by_loss
from bigtrain.train.setup import layout_of, restore, starting_weights
from bigtrain.train.superseded import remove_void
from bigtrain.train.training import TrainingRun

logger = logging.getLogger(__name__)

WORST_DOCUMENTS = 8
EXCERPT = 500
"""Characters of each."""


def rewind(run: TrainingRun, trouble: Verdict) -> None:
    """Go back to before the trouble, and leave out the batches that led to it. Every rank calls it.

    Raises:
        BigtrainError: it was tried too often, no checkpoint from before is left, or the data do not last any longer;
            then nothing was decided. Or a checkpoint cannot be loaded; then the next start does it.
    """
    run.pulse.enter(Phase.REWIND)
    run.saver.wait()
    run.note_commits()
    checkpoint, decision, data = decide(run, trouble)
    reached("guard.decided")
    run.pulse.enter(Phase.REWIND, decision.rewind_to)
    before = run.data
    act(run, checkpoint, decision, data)
    run.pulse.beat()
    explain(run, trouble, before)


def decide(run: TrainingRun, trouble: Verdict) -> tuple[Checkpoint | None, Decision, RunData]:
    """Where to go back to (None: the first weights), the decision, now durable, and the data by its plan.

    Raises:
        BigtrainError: see `rewind`.
    """
    guard = run.settings.guard
    repeated = in_a_row(run.decisions, trouble.first_step, guard.window)
    if repeated >= guard.max_rewinds:
        raise gave_up(run, trouble, repeated)
    checkpoint = checkpoint_before(run, trouble)
    rewind_to = checkpoint.step if checkpoint else 0
    first = max(rewind_to + 1, trouble.first_step - guard.skip_before)
    skip = SkipSettings(steps=(first, trouble.last_step + guard.skip_after), reason=f"guard: {trouble}")
    number, position = len(run.decisions) + 1, len(run.settings.data.skip)
    decision = Decision(number, trouble.kind, trouble.signs, rewind_to, skip, position)
    data = on_every_rank(run.topology, lambda: run.data.replanned(with_decisions(run.settings, [decision])))

    def write() -> Decision:
        decided = replace(decision, evidence=evidence_of(run.data, trouble.worst.step))
        write_decision(run.directory.decisions, decided)
        return decided

    return checkpoint, on_first_rank(run.topology, write), data


def checkpoint_before(run: TrainingRun, trouble: Verdict) -> Checkpoint | None:
    """The newest good checkpoint that is older than all batches to be left out; else, than the trouble.

    Raises:
        BigtrainError: there have been some, and none of them is left: the first weights are no place to go back to.
    """
    layout = layout_of(run.settings, run.topology)
    for step in (max(1, trouble.first_step - run.settings.guard.skip_before), trouble.first_step):
        search = newest_verified(run.places, ranks=run.topology, layout=layout, before=step)
        if search.newest is not None:
            return search.newest
    events, decisions = run.directory.events, run.decisions
    commits = on_first_rank(run.topology, lambda: standing_commits(read_json_lines(events), decisions))
    if lost := [step for step in commits if step < trouble.first_step]:
        raise BigtrainError(
            "no checkpoint from before the trouble is left to go back to; nothing was changed",
            found=f"{trouble}; the last checkpoint before it was that of step {max(lost)}",
            wanted="a good checkpoint of an earlier step",
            fix="put one back; or keep more of them (checkpoint.keep); or go on all the same, with guard.on_spike=note",
        ).on_all_ranks()
    return None


def act(run: TrainingRun, checkpoint: Checkpoint | None, decision: Decision, data: RunData) -> None:
    """Be where the decision says."""
    run.note_decision(decision)
    step = decision.rewind_to
    logger.warning(
        f"step {run.step}  going back to step {step}; the batches of steps {decision.steps[0]} to {decision.steps[-1]} "
        f"are left out (decision {decision.decision} in {run.directory.decisions.name})"
    )
    run.decisions = (*run.decisions, decision)
    run.settings, run.data = with_decisions(run.settings, run.decisions), data
    on_first_rank(run.topology, lambda: run.directory.write_config(run.settings))
    remove_void(run.places, run.decisions, run.topology)

    run.loader.close()
    first_sample = run.plan.batches.consumed_after(step)
    run.loader = on_every_rank(
        run.topology,
        lambda: data.loader(
            run.settings.train.micro_batch_size,
            first_sample,
            rank=run.topology.data_rank,
            world_size=run.topology.data_size,
        ),
    )
    state = restore(run.engine, checkpoint, run.topology) if checkpoint else begin(run)
    run.guard = Guard.of(run.settings, run.plan)
    run.guard.restore(state.get("guard", {}))
    run.go_back(step, is_durable=checkpoint is None or not run.places.is_local(checkpoint))


def begin(run: TrainingRun) -> dict[str, Any]:
    """Put the engine where it stood before step 1; the run's own state of then, which is none.

    The random generators are left as they are: a step draws from none of them.
    """
    settings, device = run.settings, run.topology.device
    given = on_every_rank(run.topology, lambda: given_weights(settings))

    def first_weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        weights = torch.empty(shape, device=device)
        if name in given:
            weights.copy_(given[name])
        else:
            initialize(name, weights, settings.model, settings.train.seed)
        return weights.to(COMPUTE_DTYPES[settings.engine.precision])

    on_every_rank(run.topology, lambda: begin_anew(run.engine.fragments(), first_weights))
    run.engine.restore(0, run.engine.first_loss_scaler)
    run.model.set_router_moves({})
    return {}


def given_weights(settings: Settings) -> Mapping[str, torch.Tensor]:
    """Those of `model.init_from`. Raises BigtrainError."""
    return starting_weights(settings) if settings.model.init_from is not None else {}


def explain(run: TrainingRun, trouble: Verdict, data: RunData) -> None:
    """Record the documents of the worst batch with the highest loss, as the weights before the trouble see them.

    Args:
        run: the run, which has gone back.
        trouble: what it went back for.
        data: in the order of before.
    """
    step = trouble.worst.step
    try:
        documents = documents_by_loss(run.engine, run.topology, data, run.settings, step)
    except BigtrainError as error:  # all ranks have it; no reason to end a run that can go on
        logger.warning(f"step {step} cannot be looked at: {error}")
        return
    if run.topology.rank == 0:
        tokenizer = load_tokenizer(run.settings.data.dir)
        worst = [document.as_record(tokenizer, excerpt=EXCERPT) for document in documents[:WORST_DOCUMENTS]]
        run.note("evidence", decision=len(run.decisions), of_step=step, documents=worst)


def gave_up(run: TrainingRun, trouble: Verdict, repeated: int) -> BigtrainError:
    """What to tell where going back does not help."""
    run.note("gave up", steps=[trouble.first_step, trouble.last_step], rewinds=repeated)
    return BigtrainError(
        f"the run has gone back {repeated} time(s) in a row, and it happens again: leaving batches out does not help",
        found=str(trouble),
        wanted=f"{run.settings.guard.window} good steps behind the last trouble (guard.window)",
        fix=f"look at {run.directory.decisions} and at `bigtrain replay {run.directory.root} --step "
        f"{trouble.first_step}`; lower optimizer.learning_rate or lengthen schedule.warmup_steps "
        "(checkpoint.allow_change); or raise guard.max_rewinds",
    ).on_all_ranks()

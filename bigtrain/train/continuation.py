"""Whether a run may go on from its newest checkpoint with the current settings and data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.checkpoint import Change, CheckpointSummary, Search, check_compatible
from bigtrain.config import Settings, mathematics
from bigtrain.data import Plan
from bigtrain.rundir import Decision, Event, RunDirectory, RunState, read_events


def check_continuation(
    directory: RunDirectory, search: Search, settings: Settings, plan: Plan, decisions: Sequence[Decision] = ()
) -> list[Change]:
    """Check that the settings and the data allow the run to go on.

    Args:
        directory: of the run.
        search: for its newest checkpoint; those that `decisions` superseded were removed before.
        settings, plan: current, with the decisions.
        decisions: of the run.

    Returns:
        The settings that change the mathematics from here on, as `checkpoint.allow_change` allows.

    Raises:
        BigtrainError: the settings would change the mathematics; or committed checkpoints are missing or damaged. The
            run never starts at step 0 again by itself.
    """
    if search.summary is not None:
        now = mathematics(settings.at_step(search.summary.cursor.step))
        changes = check_compatible(search.summary, now, settings.checkpoint.allow_change)
        check_length(search.summary, settings)
        check_plan(search.summary, plan)
        return changes
    commits = standing_commits(read_events(directory.events), decisions)
    if commits or search.rejected:
        raise BigtrainError(
            f"{directory.root} has trained before, and no checkpoint of it can be loaded; nothing was changed",
            found="; ".join(f"{r.checkpoint.path.name}: {', '.join(r.problems)}" for r in search.rejected)
            or f"no checkpoint in {settings.checkpoint.dir or directory.checkpoints}, though one of step "
            f"{max(commits)} was committed",
            wanted="a checkpoint whose every byte is right",
            fix="put the checkpoints back (is checkpoint.dir still the same place?), or start from step 0 in another "
            "run_dir",
        )
    return []


def standing_commits(events: Iterable[Mapping[str, Any]], decisions: Sequence[Decision]) -> list[int]:
    """The steps of all checkpoints that were committed, without those that a decision superseded afterwards."""
    superseded_from = {decision.decision: decision.steps.start for decision in decisions}
    carried_out: set[int] = set()
    steps: list[int] = []
    for event in events:
        if event["event"] == Event.COMMIT:
            steps.append(event["step"])
        elif event["event"] == Event.REWIND:
            decision = event["decision"]
            carried_out.add(decision)
            steps = [step for step in steps if step < superseded_from.get(decision, math.inf)]
    # The others are of a rewind that was interrupted before its event was written.
    left_over = [limit for decision, limit in superseded_from.items() if decision not in carried_out]
    return [step for step in steps if all(step < limit for limit in left_over)]


def check_length(summary: CheckpointSummary, settings: Settings) -> None:
    """Refuse a schedule that would have ended before the checkpoint.

    Raises:
        BigtrainError: names both steps.
    """
    if settings.total_steps < summary.cursor.step:
        raise BigtrainError(
            "the schedule would end before the step that the run has come to",
            found=f"train.steps {settings.total_steps}",
            wanted=f"at least {summary.cursor.step}, the step of the newest checkpoint",
            fix="raise train.steps, or use the checkpoint of an earlier step in a new run_dir",
        )


def check_plan(summary: CheckpointSummary, plan: Plan) -> None:
    """Refuse another order of samples that the run has trained on. Later samples may change.

    Raises:
        BigtrainError: names the first different sample, and the parts of the plan that differ.
    """
    cursor = summary.cursor
    if plan.plan_id == cursor.plan_id:
        return
    described = RunState.of(summary.state).plan
    if described.get("format") != plan.describe()["format"]:
        raise BigtrainError(
            "the checkpoint was written by a version of bigtrain that ordered its data in another way",
            found=f"plan {cursor.plan_id[:12]}",
            wanted=f"plan {plan.plan_id[:12]}",
            fix="go on with the version that wrote it, or start another run in a new run_dir",
        )
    then = Plan.from_json(described)
    parting = plan.first_difference(then)
    if parting is not None and parting < cursor.consumed_samples:
        raise BigtrainError(
            f"the data plan differs in samples that the run has trained on before the checkpoint of step {cursor.step}",
            found=f"{', '.join(plan.parts_unlike(then))} differ; the same only up to step "
            f"{plan.batches.step_of(parting)}, sample {parting:,}",
            wanted=f"the same up to sample {cursor.consumed_samples:,}",
            fix="put the data settings back, or change them from a later point on (data.phases, with new_epoch where "
            "sequence_length changes, data.skip, train.batch_size_warmup); `bigtrain data diff RUN CONFIG` shows what "
            "a change moves",
        )

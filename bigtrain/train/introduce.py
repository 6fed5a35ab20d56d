"""What a start says of itself, once, in the log and in events.jsonl."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bigtrain.base import LAUNCHER, __version__, gibibytes, quantity
from bigtrain.checkpoint import Change, Search
from bigtrain.config import Settings
from bigtrain.convert import obstacles, padding_obstacle
from bigtrain.data import DataTokenizer, Plan
from bigtrain.model import count_learning_parameters, count_parameters
from bigtrain.observe import forecast_here
from bigtrain.rundir import (
    ChangeEvent,
    Event,
    FallbackEvent,
    ForecastEvent,
    Phases,
    PlanEvent,
    ResumeEvent,
    RunState,
    StartEvent,
    clock,
    read_events,
)
from bigtrain.train.training import TrainingRun
from bigtrain.trained import one_rank_can_sample

logger = logging.getLogger(__name__)

TORCHELASTIC_RUN_ID = "TORCHELASTIC_RUN_ID"
"""Set by torchrun, and by every launcher that is built on it."""


def introduce(run: TrainingRun, search: Search, changes: Sequence[Change], phases: Phases) -> None:
    """Say once what this run is, where it starts, and what has changed since its last start."""
    _log_shape(run)
    _log_warnings(run)
    _record_decisions(run)
    for skipped in (*search.elsewhere, *search.rejected):
        checkpoint, problems = skipped.checkpoint, "; ".join(skipped.problems)
        run.recorder.note(FallbackEvent(checkpoint.name, checkpoint.location, problems), run.step)
        logger.warning(f"{checkpoint.location} is skipped: {problems}")
    _record_lost_copy(run, search)
    start: dict[str, Any] = {
        "world_size": run.topology.world_size,
        "wandb_run_id": run.recorder.tracker.run_id,
        "version": __version__,
        "plan_id": run.data.plan.plan_id,
        "peak": run.recorder.meter.peak.as_record(),
        "clock": clock(),
        "phases": phases.seconds,
        "run_dir": str(run.directory.root.resolve()),
    }
    if run.step:
        parent = run.parent.as_record() if run.parent else None
        run.recorder.note(ResumeEvent(**start, from_checkpoint=f"step-{run.step:08d}", parent=parent), run.step)
        logger.info(f"step {run.step}  going on from the checkpoint of this step")
        if run.parent:
            logger.info(f"step {run.step}  this is a branch of the run in {run.parent.run_dir or 'another run_dir'}")
        _record_another_plan(run, search)
    else:
        run.recorder.note(StartEvent(**start), run.step)
    _record_forecast(run)
    for change in changes:
        run.recorder.note(ChangeEvent(change.key, change.then, change.now), run.step)
        logger.info(f"step {run.step}  {change.key} changes from {change.then} to {change.now}, as it was allowed to")


def _log_shape(run: TrainingRun) -> None:
    """The model, the ranks and the batch."""
    settings, topology, plan, peak = run.settings, run.topology, run.data.plan, run.recorder.meter.peak
    logger.info(
        f"bigtrain {__version__}: {settings.model.family}, {count_parameters(settings.model):,} parameters, "
        f"{settings.engine.precision}, ZeRO stage {settings.engine.zero_stage}"
    )
    logger.info(
        f"{topology.world_size} process(es) on {topology.device.type}, {torch.get_num_threads()} thread(s) each; "
        f"100% MFU is {peak}"
    )
    if settings.adapter.method != "none":
        learning = count_learning_parameters(settings.model, settings.adapter)
        logger.info(
            f"adapter {settings.adapter.method}: {learning:,} parameters learn beside {settings.model.init_from}"
        )
    run.recorder.tracker.describe({"peak": peak.as_record()})
    for stage in settings.stages:
        staged = settings.at_step(stage.first_step)
        batch, rows, length = staged.train.global_batch_size, staged.train.micro_batch_size, stage.sequence_length
        steps = f"{run.total_steps:,} steps" if stage.phase is None else f"from step {stage.first_step:,} on steps"
        logger.info(
            f"{steps} of {batch} x {length} = {quantity(batch * length)} tokens, in micro-batches of "
            f"{rows} with {batch // (topology.data_size * rows)} accumulated; plan {plan.plan_id[:12]}"
        )


def _record_forecast(run: TrainingRun) -> None:
    """What the planner expects, where the datasheet of the device is known."""
    topology = run.topology
    expected = forecast_here(
        run.settings.at_step(run.step + 1),
        topology.device,
        ranks=topology.world_size,
        ranks_per_node=topology.local_world_size,
    )
    if expected is None:
        return
    event = ForecastEvent(
        device=expected.device.name,
        memory=expected.memory.kinds,
        allocated_bytes=expected.memory.allocated,
        step_seconds=expected.step.parts,
        tokens_per_second=expected.tokens_per_second_per_device * topology.world_size,
    )
    run.recorder.note(event, run.step)
    run.recorder.tracker.describe({"forecast": {**event.as_record(), "step_total_seconds": expected.step_seconds}})
    logger.info(
        f"the planner expects {expected.step_seconds:.3g} s a step, {quantity(event.tokens_per_second)} tokens/s and "
        f"{gibibytes(event.allocated_bytes)} of memory on {expected.device.name}"
    )


def _log_warnings(run: TrainingRun) -> None:
    """What the user may not have meant."""
    settings = run.settings
    if TORCHELASTIC_RUN_ID in os.environ and LAUNCHER not in os.environ:
        logger.warning(
            "the launcher is torchrun itself, which reports a stop on request (status 75) as a failure of every rank; "
            "`python -m bigtrain.cli.torchrun` takes the same options and keeps the exit status"
        )
    for obstacle in obstacles(settings.model):
        logger.warning(f"this model cannot be exported to Hugging Face: {obstacle}")
    if settings.model.position_offset:
        data = DataTokenizer.open(settings.data.dir)
        around = {data.end_id, *data.begin_of_text.ids}
        if (found := padding_obstacle(settings.model, data.content, around)) is not None:
            logger.warning(f"this model cannot be exported to Hugging Face: {found}")
    for key in after_the_end(settings):
        logger.warning(f"{key} starts after the last step: it changes nothing in this run")
    if settings.evaluate.samples and not one_rank_can_sample(settings):
        logger.warning(
            "evaluate.samples: at ZeRO stage 3, or with tensor or sequence parallelism, no rank has the whole model; "
            f"`bigtrain report {settings.run_dir} --samples {settings.evaluate.samples}` draws them from a checkpoint"
        )
    for dataset in run.data.held_out_datasets:
        if not dataset.tokens:
            logger.warning(f"source {dataset.name} has no held-out documents: it is not evaluated")


def _record_decisions(run: TrainingRun) -> None:
    """Record what an earlier start decided and was killed before it could record it."""
    if run.topology.rank or not run.decisions:
        return
    events = read_events(run.directory.events)
    recorded = {event.get("decision") for event in events if event["event"] == Event.REWIND}
    for decision in run.decisions:
        if decision.decision not in recorded:
            run.recorder.decision(decision, run.step)


def _record_lost_copy(run: TrainingRun, search: Search) -> None:
    """Record that the local tier no longer holds the newest checkpoint that was committed to it."""
    if run.topology.rank or run.tiers.local is None or (search.newest and run.tiers.is_local(search.newest)):
        return
    local = [event["step"] for event in read_events(run.directory.events) if _is_local_commit(event)]
    seen = {skipped.checkpoint.step for skipped in (*search.elsewhere, *search.rejected)}
    if not local or local[-1] < run.step or local[-1] in seen:
        return
    problem = "this copy was committed to checkpoint.local_dir, and is not there: the durable tier is used"
    name, place = f"step-{local[-1]:08d}", run.tiers.local.location(local[-1])
    run.recorder.note(FallbackEvent(name, place, problem), run.step)
    logger.warning(f"{place} is skipped: {problem}")


def _is_local_commit(event: Mapping[str, Any]) -> bool:
    return event.get("event") == Event.COMMIT and bool(event.get("local"))


def _record_another_plan(run: TrainingRun, search: Search) -> None:
    """Record that what lies ahead of the run is no longer what it was planned to be."""
    assert search.summary is not None
    summary, plan = search.summary, run.data.plan
    if summary.cursor.plan_id == plan.plan_id:
        return
    before = Plan.from_json(RunState.of(summary.state).plan)
    sample, parts = plan.first_difference(before), plan.parts_unlike(before)
    step = None if sample is None else plan.batches.step_of(sample)
    skips = [skip.model_dump(mode="json", exclude_none=True) for skip in run.settings.data.skip]
    run.recorder.note(PlanEvent(summary.cursor.plan_id, plan.plan_id, parts, step, skips), run.step)
    since = "which moves no batch" if step is None else f"from step {step:,} on"
    logger.info(f"step {run.step}  the data plan has changed in {', '.join(parts)}, {since}")


def after_the_end(settings: Settings) -> list[str]:
    """The keys of what would only start after the schedule."""
    last, tokens = settings.total_steps, settings.train.batches.consumed_after(settings.total_steps)
    phases = [phase.from_tokens >= tokens * settings.data.sequence_length for phase in settings.data.phases]
    skips = [(skip.steps[0] if skip.steps else skip.from_step) > last for skip in settings.data.skip]
    return [f"data.phases.{i}" for i, late in enumerate(phases) if late] + [
        f"data.skip.{i}" for i, late in enumerate(skips) if late
    ]

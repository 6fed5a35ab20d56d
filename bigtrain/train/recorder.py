"""What a run writes down: metrics.jsonl, events.jsonl, the tracker and the log. Only rank 0 keeps records."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from bigtrain.base import duration, quantity
from bigtrain.checkpoint import Commit
from bigtrain.config import Settings, TrackingSettings
from bigtrain.engine import Topology
from bigtrain.health import OwnWork
from bigtrain.observe import ALERTS, Meter, Reading, Tracker, describe_details, peak_memory
from bigtrain.rundir import (
    CaughtUpEvent,
    CommitEvent,
    CountedSeconds,
    Decision,
    EvaluateEvent,
    EventFields,
    JsonLines,
    PruneFailedEvent,
    RewindEvent,
    RunDirectory,
    SkipEvent,
    StageEvent,
    StepMetrics,
    StopEvent,
    StragglerEvent,
    account_of,
)
from bigtrain.train.step import StepOutcome
from bigtrain.train.vote import Agreement
from bigtrain.trained import Sample, SourceLoss

logger = logging.getLogger(__name__)


class Recorder:
    """The records of one start.

    Args:
        directory: of the run.
        topology: the ranks.
        settings: the section `tracking`.
        meter: times the steps.
        tracker: of rank 0; elsewhere one that does nothing.
        own_work: finds stragglers.
        start: the number of this start; None where this rank keeps no records.
    """

    def __init__(
        self,
        directory: RunDirectory,
        topology: Topology,
        settings: TrackingSettings,
        meter: Meter,
        tracker: Tracker,
        own_work: OwnWork,
        start: int | None,
    ) -> None:
        self.meter, self.tracker = meter, tracker
        self._directory, self._topology, self._own_work = directory, topology, own_work
        self._log_every = settings.log_every_steps
        keeps = start is not None
        self._metrics = JsonLines(directory.metrics, start) if keeps else None
        self._events = JsonLines(directory.events, start) if keeps else None
        self._counted = CountedSeconds(directory.metrics) if keeps else None

    def note(self, event: EventFields, step: int) -> None:
        """Add a line to events.jsonl, and alert whoever follows the run at the tracker where it is bad news."""
        details = event.as_record()
        name = details.pop("event")
        if self._events is not None:
            self._events.append({"event": name, "step": step, **details})
        if name in ALERTS:
            self.tracker.alert(f"{name} at step {step}", describe_details(details), ALERTS[name])

    def stage(self, settings: Settings, step: int) -> None:
        """Record that a stage of the run starts with a step.

        Args:
            settings: of the run at this step: `Settings.at_step`.
            step: its first.
        """
        model, train, length = settings.model, settings.train, settings.data.sequence_length
        scaling = None if model.rope_scaling is None else model.rope_scaling.model_dump(mode="json", exclude_none=True)
        self.note(StageEvent(length, train.global_batch_size, train.micro_batch_size, model.rope_theta, scaling), step)
        logger.info(f"step {step}  another stage: {train.global_batch_size} samples of {length:,} tokens a step")

    def step(
        self, outcome: StepOutcome, agreed: Agreement, *, consumed_samples: int, total_steps: int, decisions: int
    ) -> Reading:
        """Write a step to metrics.jsonl, to the tracker and, now and then, to the log. Every rank calls it.

        Returns:
            What the meter says of the step, which ends now.
        """
        reading = self.meter.end_step(outcome.step, agreed.input_tokens)
        for straggler in self._own_work.add(reading.forward_seconds):
            event = StragglerEvent if straggler.slow else CaughtUpEvent
            self.note(event(**vars(straggler)), outcome.step)
            logger.warning(f"step {outcome.step}  {straggler}")
        values = StepMetrics(
            step=outcome.step,
            loss=outcome.loss,
            learning_rate=outcome.learning_rate,
            grad_norm=outcome.grad_norm,
            auxiliary=outcome.auxiliary,
            tokens=agreed.labels.tokens,
            consumed_samples=consumed_samples,
            step_seconds=round(reading.step_seconds, 5),
            data_seconds=round(reading.data_seconds, 5),
            forward_backward_seconds=round(reading.forward_backward_seconds, 5),
            optimizer_seconds=round(reading.optimizer_seconds, 5),
            tokens_per_second=round(reading.tokens_per_second, 1),
            mfu=round(reading.mfu, 4),
            mfu_causal=round(reading.mfu_causal, 4),
            mfu_of=self.meter.peak.source,
            batch_digest=agreed.batch_digest,
            inputs_digest=agreed.inputs_digest,
            world_size=self._topology.world_size,
            decisions=decisions or None,
            peak_memory_bytes=peak_memory(self._topology.device),
            counted_seconds=self._count(outcome.step, reading),
        ).as_record()
        if self._metrics is not None:
            self._metrics.append(values)
        self.tracker.log(values, outcome.step)
        if outcome.step % self._log_every == 0 or outcome.step in (1, total_steps):
            width = len(str(total_steps))
            logger.info(
                f"step {outcome.step:>{width}}/{total_steps}  loss {outcome.loss:7.4f}  "
                f"lr {outcome.learning_rate:.2e}  "
                f"grad norm {outcome.grad_norm:6.3f}  {quantity(reading.tokens_per_second):>5} tokens/s  "
                f"MFU {reading.mfu:5.1%}  ETA {duration(reading.eta_seconds)}"
            )
        return reading

    def evaluation(self, step: int, seconds: float, losses: Sequence[SourceLoss], samples: Sequence[Sample]) -> None:
        """Write down the validation loss of every source, and what the model generated."""
        for source in losses:
            if source.metrics:
                shown = ", ".join(f"{name} {value:.4f}" for name, value in source.metrics.items())
                over = f"{shown} over {quantity(source.tokens)} labels"
            else:
                over = f"perplexity {source.perplexity:.2f} over {quantity(source.tokens)} tokens"
            logger.info(f"step {step}  validation loss of {source.name}: {source.loss:.4f}, {over}")
        drawn = [sample.as_record() for sample in samples]
        self.note(EvaluateEvent(round(seconds, 3), [source.as_record() for source in losses], drawn or None), step)
        self.tracker.log({f"validation_loss/{source.name}": source.loss for source in losses}, step)
        for source in losses:
            self.tracker.log({f"{name}/{source.name}": value for name, value in (source.metrics or {}).items()}, step)
        if samples:
            rows = [(step, sample.source, sample.prompt, sample.completion) for sample in samples]
            self.tracker.table("samples", ("step", "source", "prompt", "completion"), rows, step)

    def commit(self, commit: Commit, waited_seconds: float, at_step: int, news: str | None) -> None:
        """Write down that a checkpoint is durable.

        Args:
            commit: what was committed.
            waited_seconds: how long training has waited for it.
            at_step: where training is by now.
            news: what there is to say about the interval between saves.
        """
        step = commit.checkpoint.step
        waited = round(waited_seconds, 3) if waited_seconds > 0.001 else None
        self.note(CommitEvent(step, round(commit.seconds, 3), commit.checkpoint.name, commit.local, waited), at_step)
        logger.info(f"step {step}  checkpoint committed to {commit.checkpoint.location} in {commit.seconds:.1f}s")
        if commit.prune_problem:
            self.note(PruneFailedEvent(step, commit.prune_problem), at_step)
            logger.warning(f"an old checkpoint could not be removed: {commit.prune_problem}")
        if news:
            logger.info(f"step {at_step}  {news}")

    def decision(self, decision: Decision, step: int) -> None:
        """A decision, where all else that happens is recorded."""
        steps, skipped = [decision.outliers[0].step, decision.outliers[-1].step], decision.steps
        self.note(SkipEvent(decision.decision, [skipped[0], skipped[-1]], decision.skip.reason), step)
        self.note(RewindEvent(decision.decision, decision.kind, steps, decision.rewind_to), step)

    def sync(self) -> None:
        """Wait until metrics.jsonl is on the disk: a checkpoint is not to be ahead of it."""
        if self._metrics is not None:
            self._metrics.sync()

    def end(self, reason: str, exit_status: int, step: int) -> None:
        """Say why this start ends, and where the time of the run went."""
        self.note(StopEvent(reason, exit_status), step)
        logger.info(f"step {step}  stop: {reason}")
        if self._topology.rank == 0:
            ledger = account_of(self._directory, keep=True)
            logger.info(f"step {step}  {ledger}")
            summary: Mapping[str, Any] = {"step": step, "stop_reason": reason, **ledger.as_summary()}
            self.tracker.finish(summary, exit_status)

    def _count(self, step: int, reading: Reading) -> float | None:
        if self._counted is None:
            return None
        return round(self._counted.after(step, reading.step_seconds - reading.data_seconds), 5)

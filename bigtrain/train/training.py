"""A training run in progress: the parts that `setup` put together and the few things the loop does with them."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch

from bigtrain.base.errors import BigtrainError
from bigtrain.base.faults import damage, reached
from bigtrain.base.format import duration, quantity
from bigtrain.base.launcher_protocol import tell_progress
from bigtrain.checkpoint import Cursor, Places, Saver
from bigtrain.config import Settings, mathematics
from bigtrain.data import Dataset, Loader, Plan, RankBatch, format_digest
from bigtrain.data.run_data import RunData
from bigtrain.engine.agreement import on_every_rank, raise_first
from bigtrain.engine.engine import Engine, StepResult
from bigtrain.engine.schedule import learning_rate
from bigtrain.engine.topology import Topology
from bigtrain.health.heartbeat import Phase, Pulse
from bigtrain.health.out_of_memory import enough_memory
from bigtrain.health.replicas import compare, corruption
from bigtrain.health.spikes import Guard, Verdict
from bigtrain.health.stragglers import OwnWork, Straggler
from bigtrain.model import Decoder
from bigtrain.observe.meter import FORWARD, FORWARD_BACKWARD, OPTIMIZER, Meter, Reading
from bigtrain.observe.tracking import ALERTS, Tracker, told
from bigtrain.rundir.counted_seconds import CountedSeconds
from bigtrain.rundir.decisions import DECISIONS, Decision
from bigtrain.rundir.directory import RunDirectory
from bigtrain.rundir.json_lines import JsonLines
from bigtrain.rundir.ledger import account_of
from bigtrain.train.cadence import Cadence
from bigtrain.train.router_balance import settle
from bigtrain.train.stop import StopRequest
from bigtrain.train.walltime import EndOfTime
from bigtrain.trained.evaluation import validation_losses
from bigtrain.trained.samples import Sample, draw, one_rank_can_sample, prompts
from bigtrain.trained.text_model import TextModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Agreement:
    """What all ranks know about the step to come."""

    label_tokens: int
    """Tokens of the global batch that have a label: the loss is their mean."""
    input_tokens: int
    """Tokens of the global batch that go into the model."""
    batch_digest: str
    stop_reason: str | None
    save_is_due: bool


@dataclass
class TrainingRun:
    """Everything that a step touches. `step` counts the optimizer steps that are done."""

    settings: Settings
    topology: Topology
    directory: RunDirectory
    data: RunData
    loader: Loader
    engine: Engine
    guard: Guard
    decisions: tuple[Decision, ...]
    """What was decided about spikes so far; `settings` and `data` have it in them."""
    places: Places
    """Where its checkpoints lie."""
    meter: Meter
    tracker: Tracker
    saver: Saver
    stop: StopRequest
    step: int
    own_work: OwnWork
    pulse: Pulse = field(default_factory=Pulse)
    end_of_time: EndOfTime = field(default_factory=EndOfTime)
    metrics: JsonLines | None = None
    events: JsonLines | None = None
    """Rank 0 alone keeps records."""
    counted: CountedSeconds | None = None
    """Of rank 0: the training that counts, over all starts."""
    cadence: Cadence | None = None
    """Of rank 0, where it chooses the time between two saves."""
    first_step: int = field(init=False)
    """Where this start began: a checkpoint of that step is there already."""
    _last_save: float = field(default_factory=time.monotonic, init=False)
    _save_seconds: float | None = field(default=None, init=False)
    """The longest that a save has taken until it was durable."""
    _beside_loss: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.first_step = self._saved_step = self.step

    @property
    def plan(self) -> Plan:
        """The order of its samples."""
        return self.data.plan

    @property
    def held_out(self) -> list[Dataset]:
        """What it is evaluated on."""
        return self.data.held_out

    @property
    def model(self) -> Decoder:
        """The model under training."""
        return cast(Decoder, self.engine.module)

    @property
    def total_steps(self) -> int:
        """The last step of the schedule."""
        return self.settings.total_steps

    @property
    def last_step(self) -> int:
        """The last step of this start: that of the schedule, or an earlier one the user asked to stop after."""
        return min(self.total_steps, self.settings.train.stop_after or self.total_steps)

    @property
    def consumed_samples(self) -> int:
        """The whole state of the data, together with the plan's id."""
        return self.plan.batches.consumed_after(self.step)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether this step is one to evaluate after; the last one is `finish`'s."""
        every = self.settings.evaluate.every_steps
        return every is not None and self.step % every == 0 and self.step < self.total_steps

    @property
    def save_is_due(self) -> bool:
        """Whether to save after this step; the last one is `finish`'s. What is due while the guard suspects something
        is due until it does no more."""
        every = self.settings.checkpoint.every_steps
        passed = every is not None and self.step // every > self._saved_step // every
        return passed and not self.guard.suspects and self.step < self.total_steps

    @property
    def has_trained(self) -> bool:
        """Whether this start has done a step."""
        return self.step > self.first_step

    def fetch(self) -> tuple[RankBatch, Agreement]:
        """This rank's share of the next global batch, and what the ranks agreed on for the step.

        Raises:
            BigtrainError: some rank could not load its share, or write its part of the last checkpoint, or nothing in
                the batch has a label; raised on every rank.
        """
        self.note_commits()
        self.pulse.enter(Phase.DATA, self.step + 1)
        self.meter.start_step()
        batch: RankBatch | None = None
        error: BigtrainError | None = None
        with self.meter.waiting_for_data():
            try:
                batch = next(self.loader)
            except BigtrainError as caught:
                error = caught
        self.pulse.enter(Phase.AGREE)
        if self.topology.rank == 0 and self.end_of_time.is_near(self.meter.typical_step_seconds, self._save_seconds):
            self.stop.ask("the end of the job's time")
        counted = batch if self.topology.shard_rank == 0 else None  # ranks that share samples count them once
        label_tokens, input_tokens, digest, stop, save, failed, unsaved = self.topology.sum_across_ranks(
            [
                counted.label_tokens if counted else 0,
                counted.input_tokens if counted else 0,
                counted.digest if counted else 0,
                int(self.stop.reason is not None),
                int(self.topology.rank == 0 and self._minutes_are_over() and not self.guard.suspects),
                int(error is not None),
                int(self.saver.failed),
            ]
        )
        if unsaved:
            on_every_rank(self.topology, self.saver.wait)  # it has failed on all ranks, or is about to
        if failed:
            raise_first(self.topology, error)
        assert batch is not None
        if not label_tokens:
            step = self.step + 1
            raise BigtrainError(
                f"step {step} has nothing to train on: no token of its batch has a label",
                found=f"{int(input_tokens):,} tokens, each of a document in data.skip or the last of its part of one",
                wanted="at least one label",
                fix=f"leave the batch out: add {{steps: [{step}, {step}], reason: ...}} to the end of data.skip; or "
                "skip fewer documents, or give their source a weight of 0 from here on with data.phases",
            ).on_all_ranks()
        reasons = self.topology.all_gather(self.stop.reason) if stop else []
        return batch, Agreement(
            label_tokens=int(label_tokens),
            input_tokens=int(input_tokens),
            batch_digest=format_digest(int(digest)),
            stop_reason=next(filter(None, reasons), None),
            save_is_due=bool(save),
        )

    def optimize(self, batch: RankBatch, agreed: Agreement) -> tuple[float, StepResult]:
        """Forward, backward and update. Returns the mean loss over the global batch and what the update did.

        A step whose gradient overflows float16 is done without an update: the loss scale was too large. So is any other
        whose gradient is not finite, which `judge` has to answer.

        Raises:
            BigtrainError: the step does not fit into memory; nothing was updated.
        """
        self.pulse.enter(Phase.FORWARD_BACKWARD)
        reached("step", self.step + 1)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.topology.device)
        with enough_memory(self.settings, self.topology, f"step {self.step + 1}"):
            with self.meter.timing(FORWARD_BACKWARD):
                for micro_batch in batch.micro_batches:
                    self.pulse.beat()
                    loss_sum += self.engine.forward_backward(
                        micro_batch.to(self.topology.device).model_inputs(),
                        scale=1 / agreed.label_tokens,
                        forward=self.meter.timing(FORWARD),
                    )
            self.pulse.enter(Phase.OPTIMIZER)
            damage(self.model.named_parameters)
            if self._replicas_are_due:
                self._compare_replicas()
            reached("optimizer")
            with self.meter.timing(OPTIMIZER):
                update = self.engine.step(self.learning_rate_of(self.step + 1))
        self.pulse.enter(Phase.SETTLE)
        norm_of_first = update.grad_norm if self.topology.rank == 0 else 0.0
        total, norm = self.topology.sum_across_ranks([loss_sum.item(), norm_of_first])
        loss, update = total / agreed.label_tokens, replace(update, grad_norm=norm)  # the same bits on every rank
        self._beside_loss = settle(self.model, self.topology, agreed.label_tokens, move=update.applied)
        self.step += 1
        return loss, update

    def judge(self, agreed: Agreement, loss: float, update: StepResult) -> Verdict | None:
        """Ask the guard about the step that was just done. Returns its verdict where the run has to go back.

        Raises:
            BigtrainError: it is trouble, and the settings say to stop at that; nothing was committed.
        """
        if self.engine.scales_loss and not update.applied and math.isfinite(loss):
            self.note("overflow", loss=loss, batch_digest=agreed.batch_digest, **self.engine.loss_scaler())
            return None
        verdict = self.guard.judge(self.step, loss, update.grad_norm)
        if verdict.kind in ("fine", "suspicious"):
            return None
        if verdict.kind == "not finite":
            self.note("not finite", loss=loss, grad_norm=update.grad_norm, batch_digest=agreed.batch_digest)
        else:
            signs = [sign.as_record() for sign in verdict.signs]
            self.note("spike", passed=not verdict.is_trouble, signs=signs)
        logger.warning(f"step {self.step}  {verdict}")
        if not verdict.is_trouble:
            return None
        key = "on_spike" if verdict.kind == "spike" else "on_nonfinite"
        match getattr(self.settings.guard, key):
            case "rewind":
                return verdict
            case "note":
                self.guard.forget()  # what is above the old level may be the new one
                return None
        raise BigtrainError(
            f"the run stops at step {self.step}, as guard.{key} says; the step was not committed",
            found=str(verdict),
            wanted="a finite loss and gradient norm, in line with those of the steps before",
            fix="lower optimizer.learning_rate or lengthen schedule.warmup_steps, then start again: the run goes on "
            f"from its newest checkpoint; or let it leave the batches out by itself, with guard.{key}=rewind",
        ).on_all_ranks()

    def learning_rate_of(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        settings = self.settings
        position, length = settings.schedule_position(step), settings.schedule_length
        return learning_rate(position, length, settings.schedule, settings.optimizer.learning_rate)

    def record(self, agreed: Agreement, loss: float, update: StepResult) -> Reading:
        """Write the step to metrics.jsonl, to W&B and, now and then, to the terminal; returns what the meter said."""
        self.pulse.enter(Phase.RECORD)
        self.pulse.warm = True
        reading = self.meter.end_step(self.step, agreed.input_tokens)
        self._tell_of_stragglers(self.own_work.add(reading.forward_seconds))
        values = {
            "step": self.step,
            "loss": loss,
            "learning_rate": self.learning_rate_of(self.step),
            "grad_norm": update.grad_norm,
            **self._beside_loss,
            "tokens": agreed.label_tokens,
            "consumed_samples": self.consumed_samples,
            "step_seconds": round(reading.step_seconds, 5),
            "data_seconds": round(reading.data_seconds, 5),
            "forward_backward_seconds": round(reading.forward_backward_seconds, 5),
            "optimizer_seconds": round(reading.optimizer_seconds, 5),
            "tokens_per_second": round(reading.tokens_per_second, 1),
            "mfu": round(reading.mfu, 4),
            "mfu_causal": round(reading.mfu_causal, 4),
            "mfu_of": self.meter.peak.source,
            "batch_digest": agreed.batch_digest,
            "world_size": self.topology.world_size,
        }
        if self.decisions:
            values[DECISIONS] = len(self.decisions)
        if self.counted is not None:
            training_seconds = reading.step_seconds - reading.data_seconds
            values[CountedSeconds.KEY] = round(self.counted.after(self.step, training_seconds), 5)
        if self.metrics is not None:
            self.metrics.append(values)
        self.tracker.log(values, self.step)
        every = self.settings.tracking.log_every_steps
        if self.step % every == 0 or self.step in (1, self.total_steps):
            width = len(str(self.total_steps))
            logger.info(
                f"step {self.step:>{width}}/{self.total_steps}  loss {loss:7.4f}  lr {values['learning_rate']:.2e}  "
                f"grad norm {update.grad_norm:6.3f}  {quantity(reading.tokens_per_second):>5} tokens/s  "
                f"MFU {reading.mfu:5.1%}  ETA {duration(reading.eta_seconds)}"
            )
        return reading

    def evaluate(self) -> None:
        """Compute and record the validation loss of every source."""
        self.pulse.enter(Phase.EVALUATE)
        reached("eval")
        started = time.perf_counter()
        losses = validation_losses(self.engine, self.topology, self.held_out, self.settings, self.pulse.beat)
        for source in losses:
            logger.info(
                f"step {self.step}  validation loss of {source.name}: {source.loss:.4f}, "
                f"perplexity {source.perplexity:.2f} over {quantity(source.tokens)} tokens"
            )
        samples = self._samples()
        self.note(
            "evaluate",
            seconds=round(time.perf_counter() - started, 3),
            validation=[s.as_record() for s in losses],
            **({"samples": [sample.as_record() for sample in samples]} if samples else {}),
        )
        self.tracker.log({f"validation_loss/{source.name}": source.loss for source in losses}, self.step)
        if samples:
            rows = [(self.step, sample.source, sample.prompt, sample.completion) for sample in samples]
            self.tracker.table("samples", ("step", "source", "prompt", "completion"), rows, self.step)

    def _samples(self) -> list[Sample]:
        """What the model makes of the beginnings of held-out documents, on rank 0, where that is asked for."""
        wanted = self.settings.evaluate
        if not wanted.samples or self.topology.rank or not one_rank_can_sample(self.settings):
            return []
        model = TextModel.in_training(self.model, self.settings)
        beginnings = prompts(self.held_out, model.tokenizer, wanted.samples, model.context)
        self.model.eval()
        with torch.compiler.set_stance("force_eager"):  # a text grows by a token at a time: each time another shape
            samples = draw(model, beginnings, wanted.sample_tokens)
        self.model.train()
        return samples

    def save(self, last: bool = False) -> None:
        """Save a checkpoint of this step, once; the last one of a start is durable when this returns.

        Raises:
            BigtrainError: this save, or the one before it, could not be written; raised on every rank.
        """
        self.pulse.enter(Phase.SAVE)
        if self._saved_step != self.step or (last and self.saver.durable_step != self.step):
            self._begin_save(last)
        begun = time.perf_counter()
        if last:
            self.saver.wait()
        self.note_commits(waited_seconds=time.perf_counter() - begun)

    @property
    def _replicas_are_due(self) -> bool:
        every = self.settings.guard.replica_check_every_steps
        return every is not None and (self.step + 1) % every == 0

    def _compare_replicas(self) -> None:
        """Raises BigtrainError on every rank, when weights that must be the same are not."""
        if findings := compare(self.engine, self.topology):
            self.note("corruption", odd=[vars(finding) for finding in findings])
            raise corruption(findings)

    def _tell_of_stragglers(self, news: list[Straggler]) -> None:
        for straggler in news:
            self.note("straggler" if straggler.slow else "straggler caught up", **vars(straggler))
            logger.warning(f"step {self.step}  {straggler}")

    def _begin_save(self, last: bool) -> None:
        if self.settings.guard.replica_check_every_steps is not None:
            self._compare_replicas()  # what is saved now is what a rewind goes back to
        stall = self.saver.save(
            Cursor(self.step, self.consumed_samples, self.plan.plan_id, self.engine.optimizer_steps),
            self.engine.fragments(),
            self.engine.rng_state(),
            mathematics=mathematics(self.settings),
            zero_stage=self.settings.engine.zero_stage,
            state={
                "wandb_run_id": self.tracker.run_id,
                "plan": self.plan.describe(),
                "loss_scaler": self.engine.loss_scaler(),
                "router_moves": self.model.router_moves(),
                "guard": self.guard.state(),
                DECISIONS: len(self.decisions),
            },
            last=last,
            before=self.metrics.sync if self.metrics is not None else lambda: None,
        )
        self._last_save, self._saved_step = time.monotonic(), self.step
        self.note("save", stall_seconds=round(stall, 4))

    def note_commits(self, waited_seconds: float = 0.0) -> None:
        """Record what has become durable since this was called last, and how long the training has waited for it."""
        for commit in self.saver.finished():
            name, step, seconds = commit.checkpoint.name, commit.checkpoint.step, commit.seconds
            tell_progress(step)
            self._save_seconds = max(seconds, self._save_seconds or 0.0)
            waited = {"waited_seconds": round(waited_seconds, 3)} if waited_seconds > 0.001 else {}
            self.note("commit", step=step, seconds=round(seconds, 3), checkpoint=name, local=commit.local, **waited)
            logger.info(f"step {step}  checkpoint committed to {commit.checkpoint.location} in {seconds:.1f}s")
            if commit.prune_problem:
                self.note("prune failed", step=step, error=commit.prune_problem)
                logger.warning(f"an old checkpoint could not be removed: {commit.prune_problem}")
            if self.cadence is not None:
                self.cadence.saved(stall_seconds=commit.stall_seconds, durable_seconds=seconds)
                if news := self.cadence.news():
                    logger.info(f"step {self.step}  {news}")

    def go_back(self, step: int, *, is_durable: bool) -> None:
        """Be at an earlier step again, of which there is a checkpoint, or which is 0.

        Args:
            step: the earlier step.
            is_durable: whether that checkpoint lies in the durable place.
        """
        self.step = self._saved_step = step
        self.first_step = min(self.first_step, step)
        self.saver.went_back(step if is_durable else None)
        self._last_save = time.monotonic()

    def note_decision(self, decision: Decision) -> None:
        """Record a decision where all else that happens is recorded."""
        steps, skipped = [decision.signs[0].step, decision.signs[-1].step], [decision.steps[0], decision.steps[-1]]
        self.note("skip", decision=decision.decision, steps=skipped, reason=decision.skip.reason)
        self.note("rewind", decision=decision.decision, kind=decision.kind, steps=steps, to_step=decision.rewind_to)

    def close(self, reason: str, exit_status: int) -> None:
        """Say why the run ends and release what it holds."""
        self.pulse.enter(Phase.FINISH)
        self.note("stop", reason=reason, exit_status=exit_status)
        logger.info(f"step {self.step}  stop: {reason}")
        if self.topology.rank == 0:
            ledger = account_of(self.directory)
            logger.info(f"step {self.step}  {ledger}")
            self.tracker.finish({"step": self.step, "stop_reason": reason, **ledger.as_summary()}, exit_status)
        self.stop.ignore()

    def note(self, event: str, **details: Any) -> None:
        """Add a line to events.jsonl, and alert whoever follows the run at W&B where it is bad news."""
        if self.events is not None:
            self.events.append({"event": event, "step": self.step, **details})
        if event in ALERTS:
            self.tracker.alert(f"{event} at step {self.step}", told(details), ALERTS[event])

    def _minutes_are_over(self) -> bool:
        minutes = self.settings.checkpoint.every_minutes
        if minutes is None:
            return False
        if minutes == "auto":
            return self.cadence is not None and self._seconds_since_save > self.cadence.interval_seconds
        return self._seconds_since_save > 60 * minutes

    @property
    def _seconds_since_save(self) -> float:
        return time.monotonic() - self._last_save

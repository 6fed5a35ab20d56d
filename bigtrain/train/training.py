"""A training run in progress: the parts that `setup` put together, and what the loop does with them.

TrainingStep     step.py             forward, backward, update
Vote             vote.py             what the ranks agree on before a step
SavePolicy       save_policy.py      when to save
AnomalyPolicy    anomaly_policy.py   what to do about a spike
Recorder         recorder.py         metrics, events, tracker, log
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from bigtrain.base import BigtrainError, on_every_rank, raise_first, reached, report_progress, report_step
from bigtrain.checkpoint import Cursor, Saver, StorageTiers
from bigtrain.config import Settings, mathematics
from bigtrain.data import Loader, RankBatch, RunData
from bigtrain.engine import Topology
from bigtrain.health import Assessment, Heartbeat, LoopPhase, compare, corruption, enough_memory
from bigtrain.observe import Reading
from bigtrain.rundir import (
    CorruptionEvent,
    Decision,
    Parent,
    RunDirectory,
    RunState,
    SaveEvent,
    record_failing_hosts,
)
from bigtrain.train.anomaly_policy import AnomalyPolicy
from bigtrain.train.best_step import BestStep
from bigtrain.train.recorder import Recorder
from bigtrain.train.save_policy import SavePolicy
from bigtrain.train.step import StepOutcome, TrainingStep
from bigtrain.train.stop import StopRequest
from bigtrain.train.vote import Agreement, Vote, agree, require_labels
from bigtrain.trained import Sample, TextModel, draw, one_rank_can_sample, prompts, validation_losses


@dataclass
class TrainingRun:
    """Everything that the loop touches."""

    settings: Settings
    """Those of the user, with the decisions of the run."""
    topology: Topology
    directory: RunDirectory
    data: RunData
    loader: Loader
    training: TrainingStep
    saver: Saver
    tiers: StorageTiers
    """Where its checkpoints are kept."""
    saves: SavePolicy
    anomalies: AnomalyPolicy
    recorder: Recorder
    stop: StopRequest
    heartbeat: Heartbeat
    decisions: tuple[Decision, ...]
    """What was decided about anomalies so far; `settings` and `data` follow them."""
    parent: Parent | None
    """The run that this start branches from."""
    best: BestStep
    """The best evaluation so far."""
    base: dict[str, str]
    """The digests of the weights beside which an adapter is trained; empty without one."""
    first_step: int = field(init=False)
    """Where this start began: a checkpoint of that step is there already."""

    def __post_init__(self) -> None:
        self.first_step = self.step

    @property
    def step(self) -> int:
        """The optimizer steps that are done."""
        return self.training.done

    @property
    def total_steps(self) -> int:
        """The last step of the schedule."""
        return self.settings.total_steps

    @property
    def last_step(self) -> int:
        """The last step of this start: that of the schedule, or an earlier one the user asked to stop after."""
        return min(self.total_steps, self.settings.train.stop_after or self.total_steps)

    @property
    def goes_on(self) -> bool:
        """Whether there is another step to do in this start."""
        return self.step < self.last_step and not self.is_over

    @property
    def is_over(self) -> bool:
        """Whether the schedule has ended, or evaluations got no better for as long as the user waits."""
        patience = self.settings.evaluate.patience
        return self.step >= self.total_steps or (patience is not None and self.best.worse >= patience)

    @property
    def why_over(self) -> str:
        """Why the run is over."""
        if self.step >= self.total_steps:
            return "all steps done"
        return f"evaluate.patience: no better evaluation since that of step {self.best.step}"

    @property
    def consumed_samples(self) -> int:
        """The whole state of the data, with the plan's id."""
        return self.data.plan.batches.consumed_after(self.step)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether this step is one to evaluate after; the last one is `finish`'s."""
        every = self.settings.evaluate.every_steps
        return every is not None and self.step % every == 0 and self.step < self.total_steps

    @property
    def save_is_due(self) -> bool:
        """Whether to save after this step; the last one is `finish`'s. While the guard suspects something, a save that
        is due waits."""
        due = self.saves.is_due_after(self.step) or (self._is_best and self.saves.saved_step != self.step)
        return due and not self.anomalies.suspects and self.step < self.total_steps

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
        self.record_commits()
        self.heartbeat.enter(LoopPhase.DATA, self.step + 1)
        meter = self.recorder.meter
        meter.start_step()
        batch: RankBatch | None = None
        error: BigtrainError | None = None
        with meter.waiting_for_data():
            try:
                batch = next(self.loader)
            except BigtrainError as caught:
                error = caught
        self.heartbeat.enter(LoopPhase.AGREE)
        first = self.topology.rank == 0  # whose clock counts
        if first and self.saves.job_ends_soon(meter.typical_step_seconds):
            self.stop.ask("the end of the job's time")
        vote = Vote.on(
            batch,
            counts_batch=self.topology.shard_rank == 0,
            stops=self.stop.reason is not None,
            saves=first and self.saves.time_is_over and not self.anomalies.suspects,
            lost_a_save=self.saver.failed,
        ).summed(self.topology)
        if vote.lost_a_save:
            on_every_rank(self.topology, self.saver.wait)  # it has failed on all ranks, or is about to
        if vote.lacks_data:
            raise_first(self.topology, error)
        assert batch is not None
        require_labels(vote, self.step + 1)
        return batch, agree(vote, self.stop.reason, self.topology)

    def optimize(self, batch: RankBatch, agreed: Agreement) -> StepOutcome:
        """Forward, backward and update.

        Raises:
            BigtrainError: the step does not fit into memory, or the weights of the ranks differ; nothing was updated.
        """
        with enough_memory(self.settings, self.topology, f"step {self.step + 1}"):
            return self.training.take(batch, agreed.labels, before_update=self._compare_replicas_if_due)

    def record(self, outcome: StepOutcome, agreed: Agreement) -> Reading:
        """Write the step down; returns what the meter says of it."""
        self.heartbeat.enter(LoopPhase.RECORD)
        self.heartbeat.warm = True
        report_step()
        if self.step in (stage.first_step for stage in self.settings.stages[1:]):
            self.recorder.stage(self.settings.at_step(self.step), self.step)
        return self.recorder.step(
            outcome,
            agreed,
            consumed_samples=self.consumed_samples,
            total_steps=self.total_steps,
            decisions=len(self.decisions),
        )

    def anomaly(self, outcome: StepOutcome, agreed: Agreement) -> Assessment | None:
        """What is wrong with the step that was just done, where the run has to go back for it.

        Raises:
            BigtrainError: something is, and the settings say to stop at that; nothing was committed.
        """
        return self.anomalies.check(outcome, agreed.batch_digest, self.training.engine.loss_scaler())

    def evaluate(self) -> None:
        """Compute and record the validation loss of every source.

        Raises:
            BigtrainError: the sources have no such metric as `evaluate.metric`; raised on every rank.
        """
        self.heartbeat.enter(LoopPhase.EVALUATE)
        reached("eval")
        started = time.perf_counter()
        losses = validation_losses(self.training.engine, self.topology, self.data, self.settings, self.heartbeat.beat)
        samples = self._samples()
        self.best = self.best.after(self.step, self.settings.evaluate.metric, losses)
        self.recorder.evaluation(self.step, time.perf_counter() - started, losses, samples)

    def save(self, last: bool = False) -> None:
        """Save a checkpoint of this step, once; the last one of a start is durable when this returns.

        Raises:
            BigtrainError: this save, or the one before it, could not be written; raised on every rank.
        """
        self.heartbeat.enter(LoopPhase.SAVE)
        if self.saves.saved_step != self.step or (last and self.saver.durable_step != self.step):
            self._start_save(last)
        started = time.perf_counter()
        if last:
            self.saver.wait()
        self.record_commits(waited_seconds=time.perf_counter() - started)

    def record_commits(self, waited_seconds: float = 0.0) -> None:
        """Record what has become durable since this was called last, and how long the training has waited for it."""
        for commit in self.saver.finished():
            report_progress(commit.checkpoint.step)
            news = self.saves.committed(stall_seconds=commit.stall_seconds, durable_seconds=commit.seconds)
            self.recorder.commit(commit, waited_seconds, self.step, news)

    def go_back(self, step: int, best: BestStep, *, is_durable: bool) -> None:
        """Be at an earlier step again, of which there is a checkpoint, or which is 0.

        Args:
            step: the earlier step.
            best: the best evaluation until then.
            is_durable: whether that checkpoint is in the durable tier.
        """
        self.training.done, self.best = step, best
        self.first_step = min(self.first_step, step)
        self.saver.went_back(step if is_durable else None)
        self.saves.saved(step)

    def close(self, reason: str, exit_status: int) -> None:
        """Say why the run ends and release what it holds."""
        self.heartbeat.enter(LoopPhase.FINISH)
        self.recorder.end(reason, exit_status, self.step)
        self.stop.ignore()

    @property
    def _is_best(self) -> bool:
        return self.settings.checkpoint.keep_best and self.best.step == self.step

    def _samples(self) -> list[Sample]:
        """What the model makes of the beginnings of held-out documents, on rank 0, where that is asked for."""
        wanted = self.settings.evaluate
        if not wanted.samples or self.topology.rank or not one_rank_can_sample(self.settings):
            return []
        model = TextModel.in_training(self.training.model, self.settings)
        beginnings = prompts(self.data.held_out_datasets, self.settings, model.tokenizer, wanted.samples)
        self.training.model.eval()
        with torch.compiler.set_stance("force_eager"):  # a text grows by a token at a time: each time another shape
            samples = draw(model, beginnings, wanted.sample_tokens)
        self.training.model.train()
        return samples

    def _compare_replicas_if_due(self) -> None:
        every = self.settings.guard.replica_check_every_steps
        if every is not None and (self.step + 1) % every == 0:
            self._compare_replicas()

    def _compare_replicas(self) -> None:
        """Raises BigtrainError on every rank, when weights that must be the same are not."""
        if findings := compare(self.training.engine, self.topology):
            self.recorder.note(CorruptionEvent([vars(finding) for finding in findings]), self.step)
            if self.topology.rank == 0:
                certain = [finding.machine for finding in findings if finding.certain]
                reason = f"corrupted weights at step {self.step}"
                record_failing_hosts(self.settings.run_dir, certain, "corruption", reason)
            raise corruption(findings)

    def _start_save(self, last: bool) -> None:
        if self.settings.guard.replica_check_every_steps is not None:
            self._compare_replicas()  # what is saved now is what a rewind goes back to
        engine, plan = self.training.engine, self.data.plan
        state = RunState(
            wandb_run_id=self.recorder.tracker.run_id,
            run_dir=str(self.directory.root.resolve()),
            plan=plan.describe(),
            loss_scaler=engine.loss_scaler(),
            router_moves=self.training.model.router_moves(),
            guard=self.anomalies.guard.state(),
            decisions=len(self.decisions),
            best=self.best.as_json(),
            base=self.base,
        )
        stall = self.saver.save(
            Cursor(self.step, self.consumed_samples, plan.plan_id, engine.optimizer_steps),
            engine.fragments(),
            engine.rng_state(),
            mathematics=mathematics(self.settings.at_step(self.step)),
            zero_stage=self.settings.engine.zero_stage,
            state=state.as_json(),
            last=last or self._is_best,
            before=self.recorder.sync,
            keep_steps=(self.best.step,) if self.settings.checkpoint.keep_best and self.best.step else (),
        )
        self.saves.saved(self.step)
        self.recorder.note(SaveEvent(round(stall, 4)), self.step)

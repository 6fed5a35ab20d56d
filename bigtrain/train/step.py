"""The mathematics of one optimizer step, and where the training stands: no files, no records, no decisions.

    micro-batches ──► forward, backward ──► gradient ──► update ──► loss and norm, summed over the ranks

`train` runs it in its loop; `replay` and `profile` run it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch

from bigtrain.base import damage, reached
from bigtrain.config import Settings, TrainingStage
from bigtrain.data import LabelCounts, RankBatch
from bigtrain.engine import Engine, Topology, learning_rate
from bigtrain.health import Heartbeat, LoopPhase
from bigtrain.model import LanguageModel
from bigtrain.observe import FORWARD, FORWARD_BACKWARD, OPTIMIZER
from bigtrain.train.router_balance import settle

LOSS_TERMS = ("token_loss", "example_loss")
Timing = Callable[[str], AbstractContextManager[None]]
"""Gives, for a part of the step, what times the work done inside."""


@dataclass(frozen=True)
class StepOutcome:
    """What a step did; the same bits on every rank."""

    step: int
    """Its number, from 1."""
    loss: float
    """Mean over the labelled tokens of the global batch, in nats; with labels of examples, plus the mean over these."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    applied: bool
    """Whether the weights were updated: not where the gradient was not finite."""
    learning_rate: float
    auxiliary: dict[str, float]
    """What the model counts, see `router_balance.settle`; and the terms of the loss, where there are two."""


class LearningRate:
    """The learning rate of each step, counted from 1."""

    def __init__(self, settings: Settings) -> None:
        self._position, self._length = settings.schedule_position, settings.schedule_length
        self._schedule, self._peak = settings.schedule, settings.optimizer.learning_rate

    def __call__(self, step: int) -> float:
        """The rate of a step."""
        return learning_rate(self._position(step), self._length, self._schedule, self._peak)


class TrainingStep:
    """An engine in training."""

    def __init__(
        self,
        engine: Engine,
        topology: Topology,
        learning_rate: LearningRate,
        *,
        stages: Sequence[TrainingStage] = (),
        done: int = 0,
        timing: Timing = lambda part: nullcontext(),
        heartbeat: Heartbeat | None = None,
    ) -> None:
        """Stand at a step.

        Args:
            engine: with the weights and moments of that step.
            topology: the ranks.
            learning_rate: of each step.
            stages: of the run: the rotation of the model in each. Default: it never changes.
            done: the steps that are done.
            timing: times the parts of a step.
            heartbeat: is updated along the way.
        """
        self.engine, self.learning_rate = engine, learning_rate
        self._topology, self._timing, self._heartbeat = topology, timing, heartbeat or Heartbeat()
        self._stages = tuple(stages)
        self.done = done

    @property
    def done(self) -> int:
        """The optimizer steps that are done. The model computes as after so many, with the rotation of the last."""
        return self._done

    @done.setter
    def done(self, step: int) -> None:
        self._done = step
        self.model.at_step(step)
        self.rotate_as_in(step)

    @property
    def model(self) -> LanguageModel:
        """The model in training."""
        return cast(LanguageModel, self.engine.module)

    def rotate_as_in(self, step: int) -> None:
        """Let the model rotate queries and keys as in a step; 0 counts as step 1."""
        for stage in self._stages:
            if stage.first_step <= max(1, step):
                self.model.rotate_by(stage.model)

    def take(
        self, batch: RankBatch, labels: LabelCounts, *, before_update: Callable[[], None] = lambda: None
    ) -> StepOutcome:
        """Forward, backward and update on this rank's share of the next global batch. Every rank calls it.

        A step whose gradient is not finite is done without an update.

        Args:
            batch: the share.
            labels: of the global batch: each loss term is a mean over its own.
            before_update: called when the gradient is there, before it is used.
        """
        step, device = self.done + 1, self._topology.device
        self.rotate_as_in(step)
        self._heartbeat.enter(LoopPhase.FORWARD_BACKWARD)
        reached("step", step)
        counts = labels.of_terms(batch.loss_terms)
        loss_sums = torch.zeros(len(counts), dtype=torch.float64, device=device)
        with self._timing(FORWARD_BACKWARD):
            for micro_batch in batch.micro_batches:
                self._heartbeat.beat()
                loss_sums += self.engine.forward_backward(
                    micro_batch.to(device).model_inputs(),
                    scale=loss_scale(counts, device),
                    forward=self._timing(FORWARD),
                )
        self._heartbeat.enter(LoopPhase.OPTIMIZER)
        damage(self.model.named_parameters)
        before_update()
        reached("optimizer")
        rate = self.learning_rate(step)
        with self._timing(OPTIMIZER):
            update = self.engine.step(rate)
        self._heartbeat.enter(LoopPhase.SETTLE)
        norm_of_first = update.grad_norm if self._topology.rank == 0 else 0.0
        *totals, norm = self._topology.sum_across_ranks([*loss_sums.tolist(), norm_of_first])
        means = [total / count for total, count in zip(totals, counts, strict=True)]
        auxiliary = settle(self.model, self._topology, labels.tokens, move=update.applied)
        if len(means) > 1:
            auxiliary |= dict(zip(LOSS_TERMS, means, strict=True))
        self.done = step
        return StepOutcome(step, sum(means), norm, update.applied, rate, auxiliary)


def loss_scale(counts: Sequence[int], device: torch.device) -> float | torch.Tensor:
    """What makes means of the summed terms of a loss, for `Engine.forward_backward`.

    Args:
        counts: labels of the global batch, of each term.
        device: of the engine.
    """
    if len(counts) == 1:
        return 1 / counts[0]
    return torch.tensor([1 / count for count in counts], device=device)

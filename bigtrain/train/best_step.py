"""Which evaluation of a run was the best so far, and how many have followed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.trained import SourceLoss

LOSS = "loss"
"""The metric of which less is better."""


@dataclass(frozen=True)
class BestStep:
    """The best evaluation so far. It is part of a checkpoint's state, so that it survives restarts and rewinds."""

    step: int | None = None
    """None before the first evaluation."""
    metric: str = LOSS
    """What was compared; with another one the comparison starts over."""
    value: float | None = None
    """Of the metric."""
    last_evaluation: int | None = None
    """The step of the newest evaluation."""
    worse: int = 0
    """Evaluations since the best one."""

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> BestStep:
        """As `as_json` gave it; without content where there is none."""
        return cls(**{name: state[name] for name in vars(cls()) if name in state})

    def after(self, step: int, metric: str, losses: Sequence[SourceLoss]) -> BestStep:
        """With one more evaluation; an evaluation of the same step again changes nothing.

        Args:
            step: that was evaluated.
            metric: `evaluate.metric`.
            losses: of all sources.

        Raises:
            BigtrainError: the evaluation has no such metric.
        """
        if not losses or step == self.last_evaluation:
            return self
        value = mean_of(metric, losses)
        if self.value is None or metric != self.metric or self._is_better(value):
            return BestStep(step, metric, value, step)
        return replace(self, last_evaluation=step, worse=self.worse + 1)

    def _is_better(self, value: float) -> bool:
        assert self.value is not None
        return value < self.value if self.metric == LOSS else value > self.value

    def as_json(self) -> dict[str, Any]:
        """For the manifest of a checkpoint."""
        return asdict(self)


def mean_of(metric: str, losses: Sequence[SourceLoss]) -> float:
    """The mean of a metric over sources, each by its number of labels.

    Raises:
        BigtrainError: there is no such metric.
    """
    tokens = sum(source.tokens for source in losses)
    if metric == LOSS:
        return sum(source.loss * source.tokens for source in losses) / tokens
    for source in losses:
        if metric not in (source.metrics or {}):
            raise BigtrainError(
                f"evaluate.metric {metric} is none that the evaluation of {source.name} has",
                found=metric,
                wanted=", ".join([LOSS, *(source.metrics or {})]),
                fix="set evaluate.metric to one of these",
            )
    return sum((source.metrics or {})[metric] * source.tokens for source in losses) / tokens

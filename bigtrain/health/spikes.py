"""Anomaly detection: whether a step's loss and gradient norm are in line with those of the steps before.

There are two kinds of anomaly:

    not finite    a loss or gradient norm that is not a finite number; certain at once
    spike         one of the two far above the median of the last `window` steps, `confirm_steps` steps in a row

Far means `loss_z` or `grad_norm_z` standard deviations, estimated from the median absolute deviation (MAD). A few wild
values move mean and variance, but not median and MAD. The deviation has a floor, so that a flat curve does not make a
spike of its own noise. Only values above the median count. The gradient norm is compared by its logarithm, because it
varies by factors. Outliers do not join the values that later steps are compared with.

The guard uses only numbers that all ranks have: no clock, no random number. So every rank comes to the same
assessment by itself. A resumed run does too, because the guard's memory (`state`) is in the checkpoint.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import TypedDict

from bigtrain.base import STRICT, as_record
from bigtrain.config import GuardSettings, Settings
from bigtrain.data import Plan
from bigtrain.rundir import Kind, Outlier

LOSS_FLOOR = 0.02
"""Least standard deviation of a loss, in nats: the noise of the batch alone in large runs."""
GRAD_NORM_FLOOR = 0.2
"""Least standard deviation of the logarithm of a gradient norm."""
MAD_TO_DEVIATION = 1.4826
"""A normal distribution's standard deviation in median absolute deviations."""


@dataclass(frozen=True)
class Assessment:
    """What the guard concludes after a step."""

    kind: Kind
    """`suspicious`: outliers, but fewer than `confirm_steps`. `passed`: the outliers before this step have ended."""
    outliers: tuple[Outlier, ...] = ()
    """The steps in question, in a row."""

    @property
    def is_anomaly(self) -> bool:
        """Whether the run has to respond."""
        return self.kind in ("spike", "not finite")

    @property
    def first_step(self) -> int:
        """The first outlier's step."""
        return self.outliers[0].step

    @property
    def last_step(self) -> int:
        """The last outlier's step."""
        return self.outliers[-1].step

    @property
    def worst(self) -> Outlier:
        """The outlier that deviates most; of those that are not finite, the first."""
        return max(self.outliers, key=lambda outlier: outlier.worst)

    def __str__(self) -> str:
        outlier = self.worst
        numbers = f"loss {outlier.loss:.4g}, gradient norm {outlier.grad_norm:.4g}"
        if self.kind == "not finite":
            return f"not finite at step {self.last_step}: {numbers}"
        zs = {"loss": outlier.loss_z, "gradient norm": outlier.grad_norm_z}
        above = " and ".join(f"{name} {z:.1f}" for name, z in zs.items() if z is not None)
        where = f"step {self.first_step}" if len(self.outliers) == 1 else f"steps {self.first_step} to {self.last_step}"
        return f"a spike at {where}: {numbers} at step {outlier.step}, standard deviations above the median: {above}"


class _Memory(TypedDict, total=False):
    """A guard's memory as JSON values."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    losses: list[float]
    log_grad_norms: list[float]
    signs: list[Outlier]


class Guard:
    """Assesses every step in turn.

    Args:
        settings: the section `guard`.
        warmup_steps: steps up to this one are never a spike.
        fresh_at: steps at which the data or the batch changes, so that earlier steps do not compare.
    """

    def __init__(self, settings: GuardSettings, *, warmup_steps: int = 0, fresh_at: Collection[int] = ()) -> None:
        self._settings = settings
        self._warmup_steps, self._fresh_at = warmup_steps, frozenset(fresh_at)
        self._losses: deque[float] = deque(maxlen=settings.window)
        self._log_norms: deque[float] = deque(maxlen=settings.window)
        self._outliers: list[Outlier] = []

    @classmethod
    def of(cls, settings: Settings, plan: Plan) -> Guard:
        """Make the guard of a run."""
        return cls(settings.guard, warmup_steps=warmup_steps(settings), fresh_at=turns_of(plan))

    @property
    def suspects(self) -> bool:
        """Whether the last steps were outliers, so that this is no time to save."""
        return bool(self._outliers)

    def assess(self, step: int, loss: float, grad_norm: float) -> Assessment:
        """Assess a step, counted from 1. The steps come in their order."""
        if step in self._fresh_at:
            self.forget()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return Assessment("not finite", (*self._outliers, Outlier(step, loss, grad_norm)))
        log_norm = math.log(max(grad_norm, 1e-30))
        outlier = self._compared(step, loss, grad_norm, log_norm)
        if outlier is not None:
            self._outliers.append(outlier)
            enough = len(self._outliers) >= self._settings.confirm_steps
            return Assessment("spike" if enough else "suspicious", tuple(self._outliers))
        passed, self._outliers = tuple(self._outliers), []
        self._losses.append(loss)
        self._log_norms.append(log_norm)
        return Assessment("passed", passed) if passed else Assessment("fine")

    def forget(self) -> None:
        """Drop all earlier steps: later ones are not compared with them."""
        self._losses.clear()
        self._log_norms.clear()
        self._outliers.clear()

    def state(self) -> dict[str, Any]:
        """Return the guard's memory as JSON values, for `restore`."""
        return {
            "losses": list(self._losses),
            "log_grad_norms": list(self._log_norms),
            "signs": [outlier.as_record() for outlier in self._outliers],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Replace the guard's memory by what `state` returned; an empty mapping clears it. Raises BigtrainError."""
        memory = as_record(_Memory, dict(state), "the guard's memory in a checkpoint's manifest.json")
        self.forget()
        self._losses.extend(memory.get("losses", ()))
        self._log_norms.extend(memory.get("log_grad_norms", ()))
        self._outliers.extend(memory.get("signs", ()))

    def _compared(self, step: int, loss: float, grad_norm: float, log_norm: float) -> Outlier | None:
        """A finite step as an outlier; None where it is none, or there are too few steps to compare with."""
        if len(self._losses) < self._settings.window or step <= self._warmup_steps:
            return None
        loss_z = deviations(loss, self._losses, LOSS_FLOOR)
        norm_z = deviations(log_norm, self._log_norms, GRAD_NORM_FLOOR)
        limits = (loss_z, self._settings.loss_z), (norm_z, self._settings.grad_norm_z)
        if any(limit is not None and z > limit for z, limit in limits):
            return Outlier(step, loss, grad_norm, round(loss_z, 3), round(norm_z, 3))
        return None


def deviations(value: float, history: Collection[float], floor: float) -> float:
    """Return how many standard deviations a value is above the median of a history; negative below it.

    Args:
        value: the value.
        history: the values that it is compared with.
        floor: the least standard deviation.
    """
    median = statistics.median(history)
    mad = statistics.median(abs(other - median) for other in history)
    return (value - median) / max(MAD_TO_DEVIATION * mad, floor)


def warmup_steps(settings: Settings) -> int:
    """Return the number of steps in which the learning rate rises."""
    schedule = settings.schedule
    if schedule.by == "step" or not schedule.warmup:
        return schedule.warmup
    return settings.train.batches.step_of(-(-schedule.warmup // settings.data.sequence_length) - 1)


def turns_of(plan: Plan) -> set[int]:
    """Return the steps at which another mixture of sources, or another batch size, starts."""
    samples = [plan.skips.sample_of(interval.start) for interval in plan.mixture.intervals[1:]]
    return {stage.first_step for stage in plan.batches.stages[1:]} | set(map(plan.batches.step_of, samples))

"""What a ladder of small runs has found: the runs, what was tuned, the law, and what it says of the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bigtrain.estimate.scaling_law import Allocation, Interval, ScalingLaw

Counted = Literal["all", "non-embedding"]
"""Which parameters N counts."""


@dataclass(frozen=True)
class RungResult:
    """One run of the ladder, trained to the end of its schedule."""

    run: str
    """Its run directory."""
    hidden_size: int
    layers: int
    parameters: int
    """N."""
    tokens: int
    """D."""
    global_batch_size: int
    learning_rate: float
    flops: float
    """Of its training, attention included."""
    seconds: float
    """Of its steps."""
    loss: float
    """Held out, in nats a token."""
    fitted_loss: float
    """By the law."""


@dataclass(frozen=True)
class SweepPoint:
    """One value that a sweep has tried."""

    value: float
    losses: Sequence[float]
    """Held-out loss of each seed that did not diverge."""
    diverged: int
    """Number of seeds whose loss or gradient was not finite."""

    @property
    def mean(self) -> float:
        """Mean loss; infinite where a seed diverged."""
        return float("inf") if self.diverged else sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class SweptGrid:
    """What a sweep of one setting has found."""

    points: Sequence[SweepPoint]
    """In order of the value."""
    best: float
    """The minimum of a parabola in log2 of the value, through the best point and its neighbours."""
    spread: Interval
    """The minima of the seeds, each by itself."""
    inside: bool
    """Whether values on both sides of the best one were worse."""


@dataclass(frozen=True)
class SweepResult:
    """A sweep of the learning rate or of the batch size over small runs."""

    of: Literal["learning rate", "batch size"]
    hidden_size: int
    parameters: int
    """N of the runs."""
    tokens: int
    """D of the runs."""
    grid: SweptGrid


@dataclass(frozen=True)
class TargetPrediction:
    """What the ladder says of the target."""

    parameters: int
    tokens: int
    flops: float
    """6 N D, as the law counts them."""
    loss: float
    interval: Interval
    """Of the law's loss: the middle 90% of the bootstrap."""
    overrides: Sequence[str]
    """The tuned settings as `key=value`, which `train`, `plan` and `submit` take."""
    measured: float | None = None
    """The held-out loss of the target, where it has been trained with these settings."""


@dataclass(frozen=True)
class BackTest:
    """A law without the largest rungs, which then predicts them."""

    parameters: int
    """Of the largest rungs."""
    times: float
    """How many times larger they are than the largest that the law was fitted to."""
    largest_error: float
    """Relative, over these rungs."""


@dataclass(frozen=True)
class OptimalSize:
    """The size and the tokens of the least loss for some compute."""

    flops: float
    """6 N D."""
    best: Allocation
    parameters: Interval
    tokens: Interval
    loss: float


@dataclass(frozen=True)
class LadderResult:
    """All that a ladder has found."""

    run: str
    """The run directory of the target."""
    counted: Counted
    rungs: Sequence[RungResult]
    sweeps: Sequence[SweepResult]
    law: ScalingLaw
    intervals: dict[str, Interval]
    """Of the constants of the law, by their names: the middle 90% of the bootstrap."""
    back_test: BackTest | None
    """Null where the ladder without its largest size is too small for a law."""
    target: TargetPrediction
    optimal: OptimalSize
    """For the target's compute."""
    flops: float
    """Of all runs of the ladder, sweeps included."""
    seconds: float
    """Of all their steps."""
    warnings: Sequence[str]


@dataclass(frozen=True)
class PendingLadder:
    """A ladder whose next runs are in Slurm's queue, or are only listed."""

    run: str
    pending: Sequence[str]
    """Names of the runs that have to end before the ladder goes on."""
    job: str | None
    """Slurm's number of their array; null where nothing was submitted."""
    flops: float
    """Of the runs that are pending."""

"""The section `guard`: what a run watches while it trains, and what it does about anomalies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from bigtrain.config.section import NonNegativeInt, PositiveInt, Section


class GuardSettings(Section):
    """Anomalies that a run detects by itself, and what it does about them."""

    on_nonfinite: Literal["rewind", "stop"] = "rewind"
    """What to do about a loss or a gradient that is not finite. `rewind`: go back to the newest checkpoint before it,
    leave out the batches around it, and continue. `stop`: exit without a checkpoint. An overflow under float16 loss
    scaling does not count."""
    on_spike: Literal["rewind", "note", "stop"] = "rewind"
    """What to do about a loss or gradient norm that jumps up and stays high for `confirm_steps`. `note`: only record
    it."""
    loss_z: PositiveFloat | None = 10.0
    """A loss is an outlier when it is this many standard deviations above the median of the last `window` losses. The
    median absolute deviation gives the standard deviation, at least 0.02. null: losses are not checked."""
    grad_norm_z: PositiveFloat | None = 10.0
    """The same for the logarithm of the gradient norm, with a standard deviation of at least 0.2. By default no norm
    below 7 times the median is an outlier. null: gradient norms are not checked."""
    window: Annotated[int, Field(ge=4)] = 128
    """Number of earlier steps that a step is compared with. Before there are so many, and during the warm-up of the
    learning rate, nothing is a spike. A new phase of the data or a new batch size starts the count again."""
    confirm_steps: PositiveInt = 5
    """Outliers in a row that make a spike. A single unusual batch has no effect after a step or two."""
    skip_before: NonNegativeInt = 100
    """A rewind leaves out the batches of this many steps before the first outlier. The weights mostly go wrong before
    the loss shows it (PaLM went back about 100 steps and left out 200 to 500 batches)."""
    skip_after: NonNegativeInt = 100
    """A rewind also leaves out the batches of this many steps after the last outlier."""
    max_rewinds: NonNegativeInt = 3
    """Rewinds in a row before the run stops. They are in a row when fewer than `window` good steps are between them."""
    hang_seconds: PositiveFloat | None = 300.0
    """Seconds without progress on any rank, after which the run ends with status 70. The log names the rank that the
    others wait for. engine.process_group_timeout_minutes must be longer. null: hangs are not detected."""
    hang_slow_seconds: PositiveFloat = 1800.0
    """The same for slow phases: each stage of the start, the first step, a batch of an evaluation, a save."""
    straggler_every_steps: PositiveInt | None = 20
    """Length of the window, in steps, in which the ranks compare the time of their own work. null: they do not."""
    straggler_share: PositiveFloat = 0.2
    """A rank that is slower than the others by this share in three windows in a row is logged with its host."""
    replica_check_every_steps: PositiveInt | None = 100
    """The ranks compare their copies of the weights after every this many steps, and before every save. If one differs,
    the log names it, and the run ends with status 71; the next start continues from the newest checkpoint. null:
    never."""

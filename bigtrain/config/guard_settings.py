"""Settings of what looks after a run while it trains: numbers out of line, and what is done about them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from bigtrain.config.section import Section


class GuardSettings(Section):
    """What a run looks out for by itself, and what it does then."""

    on_nonfinite: Literal["rewind", "stop"] = "rewind"
    """A loss or a gradient that is not finite. `rewind`: go back to the newest checkpoint before it, leave out the
    batches around it, go on. `stop`: commit nothing and leave. (An overflow under float16 loss scaling is neither.)"""
    on_spike: Literal["rewind", "note", "stop"] = "rewind"
    """A loss or gradient norm that jumps up and stays there for `confirm_steps`. `note`: only record it."""
    loss_z: PositiveFloat | None = 10.0
    """How far above the median of the last `window` losses a loss is out of line, in standard deviations as the median
    absolute deviation gives them, each at least 0.02. null: losses are not judged."""
    grad_norm_z: PositiveFloat | None = 10.0
    """The same for the logarithm of the gradient norm, each deviation at least 0.2: by default no norm below 7 times
    the median is out of line. null: gradient norms are not judged."""
    window: Annotated[int, Field(ge=4)] = 128
    """Steps that a step is compared with. Until there are as many, and in the warm-up of the learning rate, nothing is
    taken for a spike; where a phase of the data or another batch size begins, they are gathered anew."""
    confirm_steps: PositiveInt = 5
    """Steps in a row that must be out of line. Odd batches pass by themselves within a step or two."""
    skip_before: NonNegativeInt = 100
    """A rewind leaves out the batches of so many steps before the first that was out of line: weights mostly go wrong
    before the loss shows it (PaLM went back about 100 steps and left out 200 to 500 batches)."""
    skip_after: NonNegativeInt = 100
    """And so many behind the last one seen."""
    max_rewinds: NonNegativeInt = 3
    """Rewinds in a row, with fewer than `window` good steps behind the last one's batches, before the run gives up."""
    hang_seconds: PositiveFloat | None = 300.0
    """When no rank has got on with its step for so long, the run ends with status 70, and the log names the rank that
    the others wait for. engine.process_group_timeout_minutes stands behind it and is to be longer. null: nobody
    watches."""
    hang_slow_seconds: PositiveFloat = 1800.0
    """The same for what may take longer: each stage of the start, the first step, an evaluation's batch, a save."""
    straggler_every_steps: PositiveInt | None = 20
    """The ranks compare their own work in windows of so many steps. null: they do not."""
    straggler_share: PositiveFloat = 0.2
    """A rank that is slower than the others by this share, in three windows in a row, is named with its host."""
    replica_check_every_steps: PositiveInt | None = 100
    """The ranks compare their copies of the weights at every so many steps, and before every save; a rank that differs
    is named, and the run ends with status 71, to go on from its newest checkpoint in another start. null: never."""

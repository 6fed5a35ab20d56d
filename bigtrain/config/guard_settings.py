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
